"""Does a recipe fit its cluster? Worked examples of the first-fit check."""

import pytest

from cluster.connect import check
from fusion.errors import ClusterError
from fusion.placement import Demand

NODE = {"CPU": 16.0, "GPU": 4.0}


def test_two_engines_of_two_gpus_fit_one_node_of_four():
    check({"generate/a": Demand(2, 1, 2, "gpu")}, [NODE])


def test_an_engine_of_eight_gpus_does_not_spread_over_two_nodes_of_four():
    with pytest.raises(ClusterError, match=r"generate/a does not fit: it asks for 1 actors with 1 CPU and 8 GPU each"):
        check({"generate/a": Demand(1, 1, 8, "gpu")}, [NODE, NODE])


def test_what_is_missing_is_counted():
    with pytest.raises(ClusterError, match=r"5 actors with 1 CPU and 2 GPU each, 3 of them find no room.*1 node\(s\)"):
        check({"sft/sft": Demand(5, 1, 2, "gpu")}, [NODE])


def test_gpus_asked_for_where_there_are_none():
    with pytest.raises(ClusterError, match="no node has a GPU"):
        check({"sft/sft": Demand(1, 1, 1, "gpu")}, [{"CPU": 16.0}])


def test_auto_takes_cpus_where_there_is_no_gpu():
    check({"sft/sft": Demand(2, 1, 1, "auto")}, [{"CPU": 2.0}])
    with pytest.raises(ClusterError):
        check({"sft/sft": Demand(2, 1, 1, "auto")}, [{"CPU": 2.0, "GPU": 1.0}])


def test_stages_that_meet_must_fit_together():
    demands = {"generate/a": Demand(1, 1, 3, "gpu"), "generate/b": Demand(1, 1, 3, "gpu")}
    check(demands, [NODE], parallel=1)
    with pytest.raises(ClusterError, match=r"2 stages at once do not fit.*parallel_stages"):
        check(demands, [NODE], parallel=2)


def test_two_engines_share_one_gpu_by_memory_share():
    check({"generate/a": Demand(2, 1, 0.45, "gpu")}, [{"CPU": 4.0, "GPU": 1.0}])
