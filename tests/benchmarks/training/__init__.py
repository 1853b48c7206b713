"""The rooms of `tests/benchmarks/train.py`: one optimizer step of the same rows, laid out as different trainers do it.

Read in this order: `shapes` (which rows, which model), `flops` (what a layout costs), `contender` (what is
compared, and the weights all of them start from), `official`, `trl_peers`, `ours` (the layouts), `roster` (their
names), `measure` and `memory` (how time and memory are taken), `report` (table and JSON).

Nothing here imports Ray or DeepSpeed; TRL and fusion are imported only by the contenders that need them, so
that a machine with torch and transformers alone can run the rest.
"""
