"""Submit a recipe as a Ray job, so that submitting twice does the work once.

The submission id is made from the recipe's stage keys and an attempt number. On the same id: a job that
succeeded is done, one that runs is attached to, one that failed or was stopped gets the next attempt (which
resumes from what is on the storage). The exit code is the job's: a stopped job is not a success.
"""

import shlex
import time
from pathlib import Path

from rich.console import Console

from fusion.config import KEY_HEX, fingerprint
from fusion.errors import ClusterError, FuselineError, InputError
from fusion.pipeline import build
from fusion.recipe import load_recipe

AGENT_WAIT_S = 60.0  # the agent of a head node that has just started takes seconds, on a busy machine tens
NO_AGENT = "No available agent"  # Ray's jobs service tells this case by its text alone, as status 500


class JobFailed(FuselineError):
    """A job that ended without success."""


def submit_recipe(
    recipes: list[Path], sets: list[str], *, address: str, working_dir: Path, wait: bool, console: Console
) -> str:
    """Submit and, with `wait`, follow to the end; return the submission id.

    Raises:
        ClusterError: no Ray Jobs service at `address`, or one that does not take the job.
        InputError: a recipe file outside `working_dir`, which the cluster would not see.
        JobFailed: the job ended as FAILED or STOPPED.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient  # seconds to import

    recipe = load_recipe(recipes, sets)
    root = working_dir.resolve()
    inside = []
    for path in recipes:
        if not path.resolve().is_relative_to(root):
            raise InputError(f"recipe {path} is not below the working directory {root}, so the job would not find it")
        inside.append(str(path.resolve().relative_to(root)))
    key = fingerprint([stage.key for stage in build(recipe).stages])[:KEY_HEX]
    base = str(Path.cwd())  # where the submitter stands: the job itself runs in a copy elsewhere
    command = shlex.join(
        ["python", "-m", "jobs.run", "run", "--base", base, *inside, *(a for s in sets for a in ("--set", s))]
    )
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ClusterError(
            f"no Ray Jobs service at {address}: {reason}; start a head node with `ray start --head`"
        ) from None
    for attempt in range(1, 1000):
        submission = f"{recipe.name}-{key}-a{attempt}"
        status = _status(client, submission)
        if status is None:
            hand_over(client, submission, command, root)
            console.print(f"submitted {submission}: {command}", highlight=False)
        elif status == JobStatus.SUCCEEDED:
            console.print(f"{submission} has succeeded before; nothing to do", highlight=False)
            return submission
        elif status in (JobStatus.FAILED, JobStatus.STOPPED):
            continue
        else:
            console.print(f"{submission} is {status.value}; attaching to it", highlight=False)
        if wait:
            _follow(client, submission, console)
        return submission
    raise JobFailed(f"{recipe.name}-{key}: 999 attempts have failed; look at the last one's log before going on")


def hand_over(client, submission: str, command: str, root: Path) -> None:
    """Submit; wait for a head node whose jobs service answers before its job agent has started."""
    deadline = time.monotonic() + AGENT_WAIT_S
    runtime_env = {"working_dir": str(root), "excludes": _ignored(root)}
    while True:
        try:
            client.submit_job(entrypoint=command, submission_id=submission, runtime_env=runtime_env)
            return
        except RuntimeError as error:
            if NO_AGENT not in str(error):
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                raise ClusterError(f"the Ray Jobs service refused {submission}: {reason}") from None
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the head node has had no job agent for {AGENT_WAIT_S:.0f} s, so {submission} was not taken; "
                    "its dashboard_agent.log says why (often another Ray on the machine holds its port: start the "
                    "head with --dashboard-agent-listen-port)"
                ) from None
            time.sleep(1)


def _status(client, submission: str):
    known = {job.submission_id: job.status for job in client.list_jobs()}
    return known.get(submission)


def _ignored(root: Path) -> list[str]:
    file = root / ".rayignore"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _follow(client, submission: str, console: Console) -> None:
    shown = 0
    while True:
        status = client.get_job_status(submission)
        text = client.get_job_logs(submission)
        if len(text) > shown:
            console.print(text[shown:], end="", highlight=False, markup=False)
            shown = len(text)
        if status.is_terminal():
            break
        time.sleep(2)
    if status.value != "SUCCEEDED":
        message = (client.get_job_info(submission).message or "").splitlines()
        raise JobFailed(
            f"job {submission} ended as {status.value}{': ' + message[-1] if message else ''}; submit again to resume"
        )
    console.print(f"{submission} succeeded", highlight=False)
