"""The actor of generate: chunks of work rows in, part files of responses out.

It renders and tokenises (`fusion.chat`), keeps one engine full with rows of several chunks at once, and
writes each finished chunk itself. Its memory is the journal: when the process dies, with the engine or
by a kill, Ray makes it anew and repeats the calls; finished rows are read back, and rows that may have
killed the engine are tried in smaller groups with nothing else in the engine, until the one that does so
even alone goes to the quarantine.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from fusion.artifact import Quarantined, commit_part, part_name, part_rows, read_quarantine, write_json
from fusion.chat import Chat, ChatConfig
from fusion.errors import FuselineError, StageError
from fusion.row_tables import from_table
from fusion.rows import Finish, Prompt, Response
from fusion.sampling import Decoding
from fusion.stages.chunks import Receipt
from fusion.stages.engine import Engine, EngineSettings, Request, Results
from fusion.stages.journal import (
    MAX_CRASHES,
    MAX_IDLE_STARTS,
    Attempt,
    Group,
    Past,
    Sampled,
    Starts,
    discard,
    groups_of,
    read_past,
    remove_torn,
)

ENGINE_FACTS = "engine.json"
FEED_ROWS = 64
"""Rows that are tokenised, noted and handed over at a time."""
JOURNAL_EVERY_S = 1.0
"""Most time between two notes of finished rows: the work that a kill can cost."""


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """One response to make."""

    prompt: Prompt
    decoding: int
    """Index of the decoding in the stage's config."""
    sample: int
    seed: int


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """What an actor needs besides its rows."""

    directory: Path
    """Directory of the stage, on storage that driver and workers share."""
    name: str
    """Name that responses carry as their model."""
    chat: ChatConfig
    decodings: tuple[Decoding, ...]
    engine: EngineSettings
    replicas: int
    run: str
    """Names the driver's run: attempts of other runs are judged with more care."""


class Sampler:
    """One engine and the chunks that feed it (`fusion.stages.chunks.ChunkActor`)."""

    engine_class: type[Engine] = Engine

    def __init__(self, settings: SamplerSettings) -> None:
        """Load the chat and start the engine.

        Raises:
            StageError: the engine cannot start, or engines keep dying before a single row is finished.
            ModelError: tokenizer or template cannot be used.
        """
        self.settings = settings
        self._starts = Starts(settings.directory, run=settings.run)
        idle = self._starts.begin()
        if idle >= MAX_IDLE_STARTS + settings.replicas:
            raise StageError(
                f"the engine of {settings.engine.folder} died {idle} times in a row without finishing a row; look "
                "for the reason in the logs of its workers (memory, driver, model) before running again"
            )
        self.chat = Chat.load(settings.engine.folder, settings.chat)
        self._turns = Turns()
        self._attempts: set[Attempt] = set()
        self._engine = self.engine_class(settings.engine, stop_ids=self.chat.stop_ids, on_death=self._on_death)
        write_json(settings.directory / ENGINE_FACTS, {"chat": self.chat.identity, "engine": self._engine.facts})

    def run_chunk(self, index: int, table: pa.Table) -> Receipt:
        """Make the responses of one chunk and write its part."""
        settings = self.settings
        if (settings.directory / part_name(index)).exists():
            # The last attempt died between writing the part and saying so; a written part stays as it is.
            discard(settings.directory, index)
            refused = len(read_quarantine(settings.directory, index))
            return Receipt(index, part_rows(settings.directory / part_name(index)), refused)
        work = tuple(from_table(table, Work))
        past = read_past(settings.directory, index, run=settings.run)
        remove_torn(settings.directory, index)
        chunk = ChunkWork(work, settings, self.chat, max_model_len=self._engine.max_model_len)
        chunk.take_over(past)
        attempt = Attempt(settings.directory, index, run=settings.run)
        self._attempts.add(attempt)
        try:
            for group in groups_of(chunk.open_rows, past.crashes):
                with self._turns.alone() if group.alone else self._turns.together():
                    self._run_group(chunk, group, attempt)
            rows = commit_part(settings.directory, index, chunk.responses, Response, quarantined=chunk.quarantined)
            attempt.commit()
        finally:
            self._attempts.discard(attempt)
            attempt.close()
        self._starts.progress()
        return Receipt(index, rows, len(chunk.quarantined), tokens=chunk.num_tokens)

    def _run_group(self, chunk: "ChunkWork", group: Group, attempt: Attempt) -> None:
        """Hand a group to the engine and wait for all of it, noting what comes back as it comes."""
        results = Results()
        for rows in _batched(group.rows, FEED_ROWS):
            requests = chunk.requests(rows)
            attempt.begin([r.row for r in requests])
            self._engine.submit(requests, results)
        while results.missing:
            finished = results.take(timeout=JOURNAL_EVERY_S)
            for sampled in finished:
                chunk.take(sampled)
            attempt.finish(finished)
            if finished:
                self._starts.progress()

    def _on_death(self, reason: str) -> None:
        for attempt in tuple(self._attempts):
            attempt.crash(reason)


class ChunkWork:
    """The rows of one chunk on their way to responses and refusals.

    Attributes:
        num_tokens: response tokens made by now.
    """

    def __init__(self, work: Sequence[Work], settings: SamplerSettings, chat: Chat, *, max_model_len: int) -> None:
        self._work, self._settings, self._chat = work, settings, chat
        self._max_model_len = max_model_len
        self._prompt_ids: dict[str, tuple[int, ...]] = {}
        self._responses: dict[int, Response] = {}
        self._refused: dict[int, Quarantined] = {}
        self.num_tokens = 0

    @property
    def open_rows(self) -> list[int]:
        return [row for row in range(len(self._work)) if row not in self._responses and row not in self._refused]

    @property
    def responses(self) -> list[Response]:
        return [self._responses[row] for row in sorted(self._responses)]

    @property
    def quarantined(self) -> list[Quarantined]:
        return [self._refused[row] for row in sorted(self._refused)]

    def take_over(self, past: Past) -> None:
        """Take what earlier attempts finished, and refuse the rows that killed their engines."""
        for sampled in past.finished.values():
            self.take(sampled)
        for row, crashes in past.crashes.items():
            if crashes >= MAX_CRASHES:
                self._refuse(row, "engine_crash", f"{crashes} engines died of it; {past.last_words or 'killed'}")

    def requests(self, rows: Sequence[int]) -> list[Request]:
        """Return the engine's requests of `rows`; a row that cannot be asked goes to the quarantine instead."""
        requests = []
        for row in rows:
            work = self._work[row]
            ids = self._encoded(row)
            if ids is None:
                continue
            if len(ids) + 1 > self._max_model_len:
                detail = f"{len(ids)} prompt tokens leave no room for an answer in max_model_len {self._max_model_len}"
                self._refuse(row, "prompt_too_long", detail)
                continue
            decoding = self._settings.decodings[work.decoding]
            requests.append(Request(row, self._row_id(row), ids, decoding, work.seed))
        return requests

    def take(self, sampled: Sampled) -> None:
        """Turn what the engine gave back into a response or a refusal."""
        if sampled.error is not None:
            self._refuse(sampled.row, "engine_rejected", sampled.error)
            return
        work, ids = self._work[sampled.row], self._encoded(sampled.row)
        if ids is None:
            return
        token_ids = self._chat.trim_generated(sampled.token_ids)
        self.num_tokens += len(token_ids)
        self._responses[sampled.row] = Response(
            prompt_id=work.prompt.prompt_id,
            model=self._settings.name,
            sample=work.sample,
            decoding=self._settings.decodings[work.decoding].name,
            text=self._chat.decode(token_ids),
            token_ids=token_ids,
            finish_reason=Finish(sampled.finish),
            seed=work.seed,
            num_prompt_tokens=len(ids),
            tokenizer=self._chat.tokenizer_hash,
        )

    def _encoded(self, row: int) -> tuple[int, ...] | None:
        """Ids of the row's prompt, once for all samples of it; None when it cannot be rendered."""
        prompt = self._work[row].prompt
        if prompt.prompt_id not in self._prompt_ids:
            try:
                self._prompt_ids[prompt.prompt_id] = self._chat.encode_prompt(prompt.messages)
            except FuselineError as error:
                self._refuse(row, "render_error", str(error))
                return None
        return self._prompt_ids[prompt.prompt_id]

    def _row_id(self, row: int) -> str:
        work = self._work[row]
        return f"{work.prompt.prompt_id}/{self._settings.name}/{work.sample}"

    def _refuse(self, row: int, reason: str, detail: str) -> None:
        self._refused[row] = Quarantined(self._row_id(row), reason, detail)


class Turns:
    """Who may have rows in the engine: any number of chunks together, or one suspect group alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._together = 0
        self._alone = False
        self._waiting_alone = 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        with self._changed:
            # Whoever waits to be alone goes first, or a stream of chunks would keep it waiting for ever.
            self._changed.wait_for(lambda: not self._alone and not self._waiting_alone)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting_alone += 1
            try:
                self._changed.wait_for(lambda: not self._alone and not self._together)
            finally:
                self._waiting_alone -= 1
            self._alone = True
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


def _batched(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (rows[i : i + size] for i in range(0, len(rows), size))
