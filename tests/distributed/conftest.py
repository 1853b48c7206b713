"""What several trainings start from. Imports are inside: without torch and DeepSpeed these tests are skipped, not broken."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def ranks():
    """Processes that train without Ray, see `rank_server.py`."""
    from train_ranks import rank_server

    with rank_server() as server:
        yield server


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights."""
    from test_train import make_model

    return make_model(tmp_path_factory.mktemp("model"))
