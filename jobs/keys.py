"""Make API keys for the service: `python -m jobs.keys new --name ci --scopes chat,reward --file keys.yaml`.

The key is printed once; the file gets its hash only. The file is replaced as a whole, so that a reader or a
crash never sees half of it, and two commands at once both count.
"""

import fcntl
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from fusion.errors import InputError
from jobs.entry import run_command
from serving.auth import ApiKey, hash_key, new_key, parse_keys, read_key_file

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

KeyFile = Annotated[Path, typer.Option(help="YAML or JSON file of hashed keys; made where it is missing.")]


@cli.command()
def new(
    name: Annotated[str, typer.Option(help="Who uses it; shown in logs.")],
    file: KeyFile,
    scopes: Annotated[str, typer.Option(help="chat, reward or both, apart by a comma.")] = "chat,reward",
    requests_per_minute: Annotated[int | None, typer.Option(help="Default: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens read and written. Default: no limit.")] = None,
) -> None:
    """Make a key, print it once, and append its hash to the file."""
    key = add(
        file,
        name=name,
        scopes=[scope.strip() for scope in scopes.split(",")],
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
    )
    print(key)
    print(f"this key is not shown again; {file} holds its hash; services read it when they start", file=sys.stderr)


@cli.command(name="list")
def list_keys(file: KeyFile) -> None:
    """Print the name, scopes and rates of every key; to take one back, delete its entry and deploy again."""
    for key in read_key_file(file):
        rates = f"{key.requests_per_minute or '-'} requests/min, {key.tokens_per_minute or '-'} tokens/min"
        print(f"{key.name}: {', '.join(key.scopes)}; {rates}")


def add(file: Path, **fields: Any) -> str:
    """Append a new key with these fields of `ApiKey` to the file, and return the key itself.

    Raises:
        InputError: a field is wrong, the name is taken, or the file cannot be read or written.
    """
    key = new_key()
    try:
        entry = ApiKey(sha256=hash_key(key), **fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        option = str(problem["loc"][0]).replace("_", "-")
        raise InputError(f"--{option}: {problem['msg']}") from None
    real = Path(os.path.realpath(file))  # a link stays a link: what it leads to gets the key
    if real.is_symlink():
        raise InputError(f"cannot write {file}: it is a link that leads to itself")
    try:
        with _alone(real.parent):
            known = read_key_file(file) if real.exists() else []
            if any(other.name == entry.name for other in known):
                raise InputError(f"{file} has a key named {entry.name} already; take another name")
            text = real.read_text(encoding="utf-8") if real.exists() else ""
            _replace(real, _with(text, known, entry, as_json=".json" in (file.suffix, real.suffix)))
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}") from None
    return key


def _with(text: str, known: list[ApiKey], entry: ApiKey, *, as_json: bool) -> str:
    """Return the file's text with the entry, comments kept where it is a YAML list in block style or an empty one."""
    wanted = [*known, entry]
    values = [key.model_dump(mode="json", exclude_none=True) for key in wanted]
    if as_json:
        return json.dumps(values, indent=2) + "\n"
    if not known:  # nothing can be appended to an empty list but in place of it
        text = re.sub(r"^[ \t]*(\[\s*\]|~|null\b)", "", text, count=1, flags=re.MULTILINE)
    start = text if text.endswith("\n") or not text else text + "\n"
    appended = start + yaml.safe_dump(values[-1:], sort_keys=False)
    try:
        if parse_keys(appended, "the file") == wanted:
            return appended
    except InputError:  # a list in flow style cannot be appended to
        pass
    return yaml.safe_dump(values, sort_keys=False)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one command at a time change the files of a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)  # makes the rename last
    finally:
        os.close(descriptor)


def _replace(file: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # mode 0600 from the start
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def main() -> None:
    """Entry point of `python -m jobs.keys`; a user's mistake is one line and exit code 2."""
    run_command(cli)


if __name__ == "__main__":
    main()
