"""What the driver prints under the line of a training stage."""

from jobs.progress import training_lines


def test_held_out_rows_memory_and_alarms_are_printed():
    notes = {
        "steps": 500,
        "kept_step": 400,
        "held_out_rows": 64,
        "memory": {"estimated": {"total": 3 * 2**30}, "measured": 2 * 2**30},
        "warnings": [{"name": "damaged_checkpoint", "step": 4, "text": "checkpoint step_000006 is damaged"}],
        "alarms": [{"name": "stuck_at_ln2", "step": 130, "text": "the loss is still 0.6931"}],
    }
    assert training_lines(notes) == [
        "     64 of the rows out were held out of training; weights of step 400 of 500 kept",
        "     memory per worker: 2.00 GiB measured, 3.00 GiB estimated",
        "     warning at step 4: checkpoint step_000006 is damaged",
        "     alarm at step 130: the loss is still 0.6931",
    ]
    assert training_lines({"rule": "best"}) == [], "of other stages nothing"
