"""Stage export: a trained model as a plain Hugging Face folder that stands on its own.

The weights are copied byte for byte; what is added is what a user needs without this project: the chat
template with everything pinned, generation_config.json with the stop ids, and a card. The one idea: the
folder is believed only after it was loaded again, and gives the same token ids and the same response
log-probabilities as the trained one.
"""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fusion import rows as row_types
from fusion.artifact import MANIFEST, Artifact, Manifest, fsync, write_json
from fusion.chat import Chat, ChatConfig
from fusion.config import Config
from fusion.errors import StageError
from fusion.models import PinnedModel, check_folder
from fusion.report.card import model_card
from fusion.stage import StageContext, StageResult
from fusion.train.encode import EncodedRow, encode_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

VERSION = 1
INDEX = "model.safetensors.index.json"
TOLERANCE = 1e-4
"""Largest difference in summed log-probability (nats); the bytes are the same, so it should be 0."""
MAX_CHECK_TOKENS = 4096
"""Longer rows are not used for the check: it holds the logits of a whole row in memory."""


class ExportConfig(Config):
    """What is exported, and how it is checked."""

    name: str
    """Name of the model on its card."""
    chat: ChatConfig
    """How conversations were rendered in training."""
    num_check: int = Field(default=8, ge=1)
    """Training rows whose log-probabilities are compared."""


def run(ctx: StageContext) -> StageResult:
    """Inputs: `model`, `rows` it was trained on, and optionally `evaluation`, `target` and `source_<name>`.

    The folder is `model` in the stage's directory; it appears there whole or not at all.

    Raises:
        StageError: the folder does not load or does not give what the trained model gives.
        ModelError: the trained folder is not a usable model folder.
    """
    config: ExportConfig = ctx.config
    trained = check_folder(ctx.model_folder("model"))
    chat = Chat.load(trained, config.chat)
    rows = _check_rows(ctx, chat, config.num_check)
    ctx.progress.begin(total=len(rows))
    for abandoned in ctx.path.glob(".model.*.tmp"):
        shutil.rmtree(abandoned)
    folder = Path(tempfile.mkdtemp(prefix=".model.", suffix=".tmp", dir=ctx.path))
    try:
        folder.chmod(0o755)  # mkdtemp makes 0700, which other users of a shared store could not read
        _copy_model(trained, folder)
        _write_chat(trained, folder, chat)
        check = check_export(trained, folder, chat=chat, config=config.chat, rows=rows)
        card = _card(ctx, chat, check)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _publish(folder, ctx.path / "model")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    ctx.progress.advance(len(rows))
    files = sorted(str(p.relative_to(ctx.path)) for p in (ctx.path / "model").rglob("*") if p.is_file())
    return StageResult(
        rows_in=len(rows), rows_out=len(rows), notes={"check": check, "chat": chat.identity}, files=tuple(files)
    )


# ---- writing ----------------------------------------------------------------------------------


def _copy_model(trained: Path, folder: Path) -> None:
    """Copy config, weights and their index; of shards only those that the index lists."""
    index = trained / INDEX
    for name in ("config.json", *_weight_files(trained), *([INDEX] if index.exists() else [])):
        shutil.copyfile(trained / name, folder / name)


def _weight_files(folder: Path) -> list[str]:
    index = folder / INDEX
    if index.exists():
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if not (folder / "model.safetensors").exists():
        raise StageError(f"export: {folder} has neither model.safetensors nor {INDEX}; train it again")
    return ["model.safetensors"]


def _write_chat(trained: Path, folder: Path, chat: Chat) -> None:
    """Write tokenizer, pinned template and generation config."""
    chat.tokenizer.save_pretrained(str(folder))
    (folder / "chat_template.jinja").write_text(pinned_template(chat), encoding="utf-8")
    source = trained / "generation_config.json"
    generation = json.loads(source.read_text(encoding="utf-8")) if source.exists() else {}
    bos = {"bos_token_id": chat.tokenizer.bos_token_id} if chat.tokenizer.bos_token_id is not None else {}
    generation |= {**bos, "eos_token_id": list(chat.stop_ids), "pad_token_id": chat.pad_id}
    write_json(folder / "generation_config.json", generation)


def pinned_template(chat: Chat) -> str:
    """Return the chat template with the date and the thinking switch of training as its defaults.

    `strftime_now("%d %b %Y")` becomes the date itself, and `date_string` and `enable_thinking` are set where the
    caller gives none.
    """
    template, variables = chat.template, chat.template_variables
    strftime = variables["strftime_now"]
    template = re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)", lambda call: json.dumps(strftime(call.group(2))), template
    )
    for name in ("enable_thinking", "date_string"):
        if name in variables and re.search(rf"\b{name}\b", template):
            value = {True: "true", False: "false"}.get(variables[name]) or json.dumps(variables[name])
            template = f"{{%- if {name} is not defined %}}{{%- set {name} = {value} %}}{{%- endif %}}{template}"
    return template


def _publish(folder: Path, target: Path) -> None:
    """Flush every file and rename the folder into place; an earlier attempt's folder gives way."""
    for file in (p for p in folder.rglob("*") if p.is_file()):
        file.chmod(0o644)
        fsync(file)
    fsync(folder)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)
    fsync(target.parent)


# ---- checking ---------------------------------------------------------------------------------


def _check_rows(ctx: StageContext, chat: Chat, num_rows: int) -> list[tuple[Any, EncodedRow]]:
    """The first rows that can be encoded, each with its ids."""
    name = ctx.artifact("rows").manifest.row_type
    row_type = next(t for t in row_types.TRAINING_ROWS if t.__name__ == name)
    found: list[tuple[Any, EncodedRow]] = []
    for row in ctx.rows("rows", row_type):
        encoded = encode_row(row, chat, max_length=MAX_CHECK_TOKENS)
        if isinstance(encoded, EncodedRow):
            found.append((row, encoded))
        if len(found) == num_rows:
            return found
    if not found:
        raise StageError(
            f"{ctx.stage.label}: no row of {ctx.artifact('rows').path} can be encoded, so nothing can be checked"
        )
    return found


def check_export(
    trained: Path, folder: Path, *, chat: Chat, config: ChatConfig, rows: Sequence[tuple[Any, EncodedRow]]
) -> dict[str, Any]:
    """Load both folders and compare token ids, stop ids, dtype and response log-probabilities.

    Raises:
        StageError: anything differs, or weights are missing or unexpected.
    """
    # The exported template has date and thinking in it; only what no template can hold is given again.
    exported = Chat.load(folder, ChatConfig(system=config.system, date=config.date))
    if exported.stop_ids != chat.stop_ids:
        raise StageError(f"export: {folder} stops at {exported.stop_ids}, training at {chat.stop_ids}")
    for row, encoded in rows:
        if exported.encode_prompt(row.prompt.messages) != tuple(encoded.prompt_ids.tolist()):
            raise StageError(f"export: row {encoded.row_id} gives other prompt ids with the exported template")
    before, dtype_before = _logps(trained, [encoded for _, encoded in rows])
    after, dtype_after = _logps(folder, [encoded for _, encoded in rows])
    if dtype_before != dtype_after:
        raise StageError(f"export: {folder} loads as {dtype_after}, the trained model as {dtype_before}")
    worst = max(abs(a - b) for a, b in zip(before, after, strict=True))
    if not worst <= TOLERANCE:  # so that NaN is refused too
        raise StageError(
            f"export: response log-probabilities of {folder} differ by up to {worst:.3g} nats from those of {trained}, "
            f"more than {TOLERANCE:g}"
        )
    return {"rows": len(rows), "max_abs_difference": worst, "dtype": dtype_after}


def _logps(folder: Path, rows: Iterable[EncodedRow]) -> tuple[list[float], str]:
    """Return one summed log-probability (nats) per response, and the dtype of the weights."""
    import torch  # seconds to import, and recipes are planned without it

    model = load_strictly(folder)
    sums = []
    with torch.inference_mode():
        for row in rows:
            for response in (ids for group in row.responses.values() for ids in group):
                ids_T = torch.tensor([*row.prompt_ids.tolist(), *response.tolist()])
                logits_TV = model(input_ids=ids_T[None, :]).logits[0, len(row.prompt_ids) - 1 : -1].float()
                logps_T = torch.log_softmax(logits_TV, -1).gather(-1, ids_T[len(row.prompt_ids) :, None])
                sums.append(float(logps_T.sum()))
    return sums, str(model.dtype).removeprefix("torch.")


def load_strictly(folder: Path) -> "PreTrainedModel":
    """Load a causal language model as anyone would, and refuse weights that are missing or left over.

    Raises:
        StageError: the weights do not fit the model that config.json describes; the first name is given.
    """
    from transformers import AutoModelForCausalLM  # with torch, see above
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it would run through the driver's own progress lines
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype="auto", local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # safetensors, transformers and torch each raise their own for damaged weights
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise StageError(
            f"export: the weights of {folder} cannot be loaded: {reason}; train the model again"
        ) from error
    model, info = loaded
    if (dtype := str(model.dtype).removeprefix("torch.")) not in (stored := _stored_dtypes(folder)):
        raise StageError(f"export: {folder}/config.json says {dtype} but the weights are {', '.join(sorted(stored))}")
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            names = sorted(map(str, info[what]))
            raise StageError(
                f"export: {folder} has {what.replace('_keys', '')} weights: {names[0]} ({len(names)} in all); "
                "train the model again"
            )
    return model.eval()


def _stored_dtypes(folder: Path) -> set[str]:
    """The dtypes of the stored weights, as torch calls them."""
    from safetensors import safe_open

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found: set[str] = set()
    for name in _weight_files(folder):
        with safe_open(str(folder / name), framework="pt") as weights:
            found |= {str(weights.get_slice(key).get_dtype()) for key in weights.keys()}  # noqa: SIM118 - not a mapping
    return {names.get(dtype, dtype) for dtype in found}


# ---- the card ---------------------------------------------------------------------------------


def _card(ctx: StageContext, chat: Chat, check: dict[str, Any]) -> str:
    source = ctx.inputs["model"]
    trained = source.manifest if isinstance(source, Artifact) else None
    rows = ctx.artifact("rows").manifest
    start = [m for m in (trained, rows) if m is not None]
    given = {
        ("target" if name == "model" else name.removeprefix("source_")): _identity(node)
        for name, node in ctx.inputs.items()
        if isinstance(node, PinnedModel)
    }
    return model_card(
        name=ctx.config.name,
        trained=trained,
        rows=rows,
        lineage=lineage(start, ctx.path.parent.parent),
        given=given,
        chat=chat.identity,
        evaluation=ctx.artifact("evaluation").manifest.notes if "evaluation" in ctx.inputs else None,
        check=check,
    )


def _identity(model: PinnedModel) -> str:
    """A repository at its revision, or the digest of a local folder, whose path means nothing elsewhere."""
    return model.label if model.ref.repo is not None else f"local, sha256 {model.digest[:12]}"


def lineage(start: Sequence[Manifest], store: Path) -> list[Manifest]:
    """Return the manifests of all stages upstream of `start`, inputs before what was made from them.

    Manifests name their inputs by key; the directory of a key is found by its name in the store.
    """
    found: dict[str, Manifest] = {}

    def visit(manifest: Manifest) -> None:
        for record in manifest.inputs.values():
            if record.key in found:
                continue
            for file in sorted(store.glob(f"*/*-{record.key}/{MANIFEST}")):
                upstream = Artifact.load(file.parent).manifest
                visit(upstream)
                found[record.key] = upstream

    for manifest in start:
        visit(manifest)
    return [m for key, m in found.items() if key not in {s.key for s in start}]
