"""Runs programs that nobody trusts: rlimits, Landlock and a seccomp allow-list, put on in the child of a warm process.

From the outside in: `runs.py` holds expected values and says what became of a program, `processes.py` speaks to the
processes, `zygote.py` forks them, and `inside.py` and `asserts.py` are what runs within, beside the program itself.
What runs within knows one input and nothing that it is compared with. Nothing here needs more than the standard library,
because the zygote imports it without any package (docs/decisions/0008-code-sandbox.md).
"""
