"""What `submit` makes of the answers of a jobs service. The real service is in tests/e2e/test_pipeline.py."""

from pathlib import Path

import pytest

from fusion.errors import ClusterError
from jobs import submit

NO_AGENT = "Request failed with status code 500: No available agent to submit job, please try again later.."


class Service:
    """A jobs service that refuses the first submissions with the given messages, then takes one."""

    def __init__(self, *refusals: str) -> None:
        self.refusals = list(refusals)
        self.taken: list[str] = []

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict) -> None:
        if self.refusals:
            raise RuntimeError(self.refusals.pop(0))
        self.taken.append(submission_id)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(submit.time, "sleep", lambda seconds: None)


def test_a_head_whose_agent_starts_late_is_waited_for(tmp_path: Path):
    service = Service(NO_AGENT, NO_AGENT)
    submit.hand_over(service, "demo-a1", "python", tmp_path)
    assert service.taken == ["demo-a1"]


def test_a_head_that_never_has_an_agent_is_one_clear_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(submit, "AGENT_WAIT_S", -1.0)
    with pytest.raises(ClusterError, match=r"no job agent for .*demo-a1 was not taken; .*dashboard_agent\.log"):
        submit.hand_over(Service(NO_AGENT), "demo-a1", "python", tmp_path)


def test_another_refusal_is_told_at_once_by_its_last_line(tmp_path: Path):
    service = Service("Traceback:\n  somewhere\nValueError: runtime_env is too large\n", NO_AGENT)
    with pytest.raises(ClusterError, match=r"refused demo-a1: ValueError: runtime_env is too large$"):
        submit.hand_over(service, "demo-a1", "python", tmp_path)
    assert service.refusals == [NO_AGENT]


def test_a_refusal_without_a_text_is_told_by_its_type(tmp_path: Path):
    with pytest.raises(ClusterError, match=r"refused demo-a1: RuntimeError$"):
        submit.hand_over(Service(""), "demo-a1", "python", tmp_path)
