"""API keys: who asks, what they may use, and how much of it per minute.

A key is 32 random bytes that its owner keeps; the service keeps the sha256. Keys come from a file
(`jobs.keys` writes it) or from an environment variable that the config names; neither the config nor a log
ever holds one. Rates are kept in memory by each copy of the HTTP front, and copies do not talk to each other:
each gives out its equal share of a rate (but at least one request at once), so that the sum is what the file
says, and a client whose requests all land on one copy gets less. Requests that run at the same time are all
let in before the first of them is charged for its tokens; the debt is then waited for.
"""

import dataclasses
import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from fusion.config import Placement
from fusion.errors import InputError
from serving.body import field_path
from serving.config import Security
from serving.errors import ApiError

KEY_PREFIX = "fl-"
MIN_KEY_CHARACTERS = 16
MAX_KEY_CHARACTERS = 256
_SENDABLE = re.compile(r"[!-~]+")

MINUTE_NS = 60_000_000_000

Kind = Literal["chat", "reward"]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/ui"})
"""Answered without a key, like the page's files below `/ui/`."""

DATA_PATH = "/ui/data"
"""Below it the page reads rows of a run, which hold prompts: not open."""

REWARD_PATHS = frozenset({"/v1/rewards", "/v1/score", "/v1/rerank", "/v2/rerank"})


class ApiKey(Placement):
    """One key, as its file holds it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Who uses it; this name is what logs show."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the key, 64 hex digits."""
    scopes: tuple[Kind, ...] = Field(min_length=1)
    """Kinds of model it may use."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=10**9)
    """Requests per minute over all copies of the front; None is no limit. Up to a minute's worth may come at once."""
    tokens_per_minute: int | None = Field(default=None, ge=1, le=10**9)
    """Tokens read and written per minute; charged after an answer, so a long one is paid for by waiting."""


def new_key() -> str:
    """Return a new key: 256 random bits as text."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """Return the hash under which a key is kept. A plain hash is enough: a random key cannot be guessed from it."""
    return hashlib.sha256(key.encode()).hexdigest()


# ---- loading ----------------------------------------------------------------------------------


def load_keys(security: Security) -> tuple[ApiKey, ...]:
    """Return the keys of a service, hashed; none where none are configured.

    Raises:
        InputError: the file or variable is missing, empty, readable by others or not a list of keys.
    """
    keys: list[ApiKey] = []
    if security.keys_file is not None:
        keys += read_key_file(security.keys_file)
        if not keys:
            raise InputError(
                f"{security.keys_file} holds no key; add one: python -m jobs.keys new --name NAME --file ..."
            )
    if security.keys_env is not None:
        keys += _keys_from(security.keys_env)
    _refuse_twins(keys, "the key file and the environment variable")
    return tuple(keys)


def read_key_file(path: Path) -> list[ApiKey]:
    """Return the keys of a YAML or JSON file: a list of `name`, `sha256`, `scopes` and rates.

    Raises:
        InputError: no such file, others may read it, or an entry is wrong; the text names file and field.
    """
    try:
        with path.open(encoding="utf-8") as file:
            # Of the open file, not of the path: what is checked is what is read.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the key file {path}: {error}") from None
    if mode & stat.S_IRWXO:
        raise InputError(f"{path} is open to every user of this machine (mode {mode:o}); run: chmod 600 {path}")
    return parse_keys(text, str(path))


def parse_keys(text: str, where: str) -> list[ApiKey]:
    """Return the keys that a key file's text lists. Raises InputError that names `where` and the field."""
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {str(error).splitlines()[0]}") from None
    try:
        keys = TypeAdapter(list[ApiKey]).validate_python([] if value is None else value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = field_path(problem["loc"])
        raise InputError(f"{where}: {field or 'the file'}: {problem['msg']}") from None
    _refuse_twins(keys, where)
    return keys


def _keys_from(variable: str) -> list[ApiKey]:
    """Return the plain keys of an environment variable, apart by commas or spaces: all scopes, no rates."""
    # Apart at ASCII spaces only: a key with another one, say a no-break space, is one key and refused.
    given = re.findall(r"[^,\s]+", os.environ.get(variable, ""), re.ASCII)
    if not given:
        raise InputError(f"security.keys_env names {variable}, which is not set or empty; put a key into it")
    for place, key in enumerate(given, 1):
        # Headers have no charset: clients would send the others as different bytes, which match no hash.
        if _SENDABLE.fullmatch(key) is None:
            raise InputError(f"key {place} in {variable} has a character that is not printable ASCII; make a new key")
        if not MIN_KEY_CHARACTERS <= len(key) <= MAX_KEY_CHARACTERS:
            raise InputError(
                f"key {place} in {variable} has {len(key)} characters; "
                f"use {MIN_KEY_CHARACTERS} to {MAX_KEY_CHARACTERS} random ones"
            )
    return [
        ApiKey(
            name=f"{variable.lower().replace('_', '-').strip('-')[:56]}-{place}",
            sha256=hash_key(key),
            scopes=("chat", "reward"),
        )
        for place, key in enumerate(given, 1)
    ]


def _refuse_twins(keys: Sequence[ApiKey], where: str) -> None:
    for values, what in (([key.name for key in keys], "name"), ([key.sha256 for key in keys], "hash")):
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"{where}: the {what} {value[:64]} occurs twice; each key has its own")


# ---- rates ------------------------------------------------------------------------------------


class Bucket:
    """A token bucket of one minute's allowance, refilled evenly. Integer nanoseconds, so that it does not drift.

    Its state is the moment at which it will be full again; taking n moves that moment n * cost later, and n
    can be had while the moment stays within the time that a whole allowance takes to refill.

    Example:
        60 per minute: cost 1 s. After 60 at once the bucket is full again in 60 s, and the next one can be had
        in 1 s.
    """

    def __init__(self, per_minute: int, *, shares: int = 1, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Make a full bucket that gives out `per_minute / shares`; `clock` returns nanoseconds."""
        self._cost_ns = -(-MINUTE_NS * shares // per_minute)  # rounded up: never more than the rate
        # A share below one per minute still lets one through.
        self._depth_ns = max(1, per_minute // shares) * self._cost_ns
        self._clock = clock
        self._full_at = clock()

    def wait_s(self, amount: int = 1) -> float:
        """Return the seconds until `amount` can be had; 0 is now."""
        now = self._clock()
        full_at = max(now, self._full_at) + amount * self._cost_ns
        return max(0, full_at - self._depth_ns - now) / 1e9

    def take(self, amount: int = 1) -> None:
        """Take `amount`, also where it is not there: then the bucket is in debt and the next wait is longer."""
        self._full_at = max(self._clock(), self._full_at) + amount * self._cost_ns


@dataclasses.dataclass(frozen=True, slots=True)
class _Budget:
    requests: Bucket | None
    tokens: Bucket | None


class Guard:
    """Decides who may ask: finds the key of a request, its scope and its budget."""

    def __init__(
        self, keys: Sequence[ApiKey], *, fronts: int = 1, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """Guard with these keys; without any, everybody may ask everything.

        Args:
            keys: hashed keys.
            fronts: copies of the HTTP front; this one gives out that share of every rate.
            clock: nanoseconds.
        """
        self._keys = tuple(keys)
        self._hashes = [bytes.fromhex(key.sha256) for key in keys]

        def bucket(per_minute: int | None) -> Bucket | None:
            return None if per_minute is None else Bucket(per_minute, shares=fronts, clock=clock)

        self._budgets = {
            key.name: _Budget(bucket(key.requests_per_minute), bucket(key.tokens_per_minute)) for key in keys
        }

    @property
    def has_keys(self) -> bool:
        """Whether only holders of a key are answered."""
        return bool(self._keys)

    def identify(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> ApiKey | None:
        """Return the key of a request; None where the path needs none or no keys are configured.

        Raises:
            ApiError: missing_api_key, invalid_api_key, or forbidden for a route that none of its scopes reaches.
        """
        if not self._keys or is_open(path):
            return None
        key = self._find(_bearer(headers))
        if path in REWARD_PATHS and "reward" not in key.scopes:
            raise out_of_scope("reward")
        return key

    def spend(self, key: ApiKey | None) -> None:
        """Take one request of a key's budget. Raises rate_limited, with the seconds to wait, where there is none."""
        if key is None:
            return
        budget = self._budgets[key.name]
        for bucket, what in ((budget.requests, "requests"), (budget.tokens, "tokens")):
            wait_s = bucket.wait_s() if bucket else 0
            if wait_s > 0:
                raise ApiError("rate_limited", f"this key has used its {what} per minute", retry_after_s=wait_s)
        if budget.requests:
            budget.requests.take()

    def charge(self, key: ApiKey | None, num_tokens: int) -> None:
        """Take the tokens of an answer, after it was made."""
        bucket = self._budgets[key.name].tokens if key is not None else None
        if bucket and num_tokens:
            bucket.take(num_tokens)

    def _find(self, presented: str) -> ApiKey:
        digest = hashlib.sha256(presented.encode()).digest()
        found = None
        # Against every entry, so that the time says nothing about which one it is.
        for key, known in zip(self._keys, self._hashes, strict=True):
            if hmac.compare_digest(digest, known):
                found = key
        if found is None:
            raise ApiError("invalid_api_key", "the API key is not one of this service")
        return found


def is_open(path: str) -> bool:
    """Return whether a path is answered without a key."""
    if path == DATA_PATH or path.startswith(f"{DATA_PATH}/"):
        return False
    return path in OPEN_PATHS or path.startswith("/ui/")


def out_of_scope(kind: Kind) -> ApiError:
    """Return the error of a key that may not use models of this kind."""
    return ApiError("forbidden", f"this API key has no scope {kind!r}")


def _bearer(headers: Sequence[tuple[bytes, bytes]]) -> str:
    given = [value.decode("latin-1") for name, value in headers if name == b"authorization"]
    if not given:
        raise ApiError("missing_api_key", "send the API key as a header: Authorization: Bearer KEY")
    scheme, _, key = given[0].partition(" ")
    if len(given) > 1 or scheme.lower() != "bearer" or not 0 < len(key.strip()) <= MAX_KEY_CHARACTERS:
        raise ApiError("invalid_api_key", "the Authorization header must be: Bearer KEY")
    return key.strip()
