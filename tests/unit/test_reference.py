"""The reference pass without Ray: a row whose log-probability is not finite is quarantined, and its neighbours are not."""

import dataclasses
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import tiny_causal  # noqa: E402
from fusion.artifact import Quarantined, part_name, read_part, read_quarantine  # noqa: E402
from fusion.row_tables import from_table  # noqa: E402
from fusion.rows import Finish, Message, Prompt, ReferenceLogps, Response, ScoredResponse, SftExample  # noqa: E402
from fusion.train.data_files import encoded_once  # noqa: E402
from fusion.train.reference import reference_worker  # noqa: E402
from fusion.train.task import ReferenceTask  # noqa: E402

BROKEN = next(token for token in range(4, 96) if token not in {(7 * n + 3) % 96 for n in range(60)})
"""A token that the probe at the start does not use."""


class Ids:
    """A tokenizer whose responses are given as ids."""

    tokenizer_hash = "own"

    def encode_prompt(self, messages) -> tuple[int, ...]:
        return (3, 10, 17)

    def encode_response(self, messages, text: str, *, finished: bool = True) -> tuple[int, ...]:
        raise AssertionError("ids are given")


def row(prompt_id: str, ids: tuple[int, ...]) -> SftExample:
    response = Response(prompt_id, "m", 0, "sample", "text", ids, Finish.stop, 0, 3, "own")
    return SftExample(Prompt(prompt_id, "d", (Message("user", "?"),)), ScoredResponse(response, 1.0, "s"))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_row_that_is_not_finite_is_quarantined_and_its_neighbours_are_not(tmp_path: Path, family: str) -> None:
    model = tiny_causal.make(family)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.get_input_embeddings().weight.data[BROKEN] = math.nan
    model.save_pretrained(tmp_path / "model")
    rows = [row("a", (3, 10, 17)), row("b", (3, BROKEN, 17)), row("c", (3, 10)), row("d", (24,))]
    encoded_once(tmp_path, rows, Ids(), row_type=SftExample, max_length=50)
    task = ReferenceTask(
        str(tmp_path), str(tmp_path / "model"), 0, "fp32", 1000, [(0, 0, 3), (1, 3, 4)], [r.row_id for r in rows]
    )
    reference_worker(dataclasses.asdict(task))
    found = [one for part in (0, 1) for one in from_table(read_part(tmp_path / part_name(part)), ReferenceLogps)]
    assert [one.row_id for one in found] == ["a", "c", "d"]
    assert [one.num_tokens["response"] for one in found] == [(3,), (2,), (1,)]
    assert read_quarantine(tmp_path, 0) == [Quarantined("b", "non_finite", "log-probabilities {'response': (nan,)}")]
    assert read_quarantine(tmp_path, 1) == []
