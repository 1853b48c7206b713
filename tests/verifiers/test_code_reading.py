"""The program of a response: where it is found, what is left out of it, and responses that have none."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from code_prompts import F, prompt

from fusion.rows import Verdict
from fusion.verifiers.code import CodeJudge, CodeVerifier
from fusion.verifiers.sandbox import source
from fusion.verifiers.sandbox.limits import Limits

NESTED = [
    "try:\n    from fast import g\nexcept ImportError:\n    def f(x): return x",
    "try:\n    import g\nexcept ImportError:\n    pass\nelse:\n    def f(x): return x",
    "for i in range(1):\n    def f(x): return x",
    "while True:\n    def f(x): return x\n    break",
    "with open('/dev/null') as file:\n    def f(x): return x",
    "match 1:\n    case 1:\n        def f(x): return x",
]
"""Programs whose entry point is in a statement of the top level, not beside them."""

WITH_FENCES = [
    'def f(x):\n    """Same.\n\n    ```\n    f(1)\n    ```\n    """\n    return x',
    'def f(x):\n    """Same.\n\n    ```python\n    f(1)\n    ```\n    """\n    return x',
    'def f(x):\n    s = """a\n   \n\t\nb"""\n    return s',
    'def f(x):\n    s = """a\n  b"""\n    return s',
]
"""Programs whose text has to stay as it is, lines in it that look like fences too."""
INFOS = [
    "python:solution.py",
    "python,editable",
    "{.python}",
    "{.python .numberLines}",
    "python{1,3}",
    "python=",
    "ipython3",
]


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    judge = CodeVerifier(timeout_s=2.0, memory_mb=512, output_kb=64, value_kb=64).load()
    yield judge
    judge.close()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (F, F),
        (f"Sure!\n```python\n{F}\n```\nDone.", F),
        (f"```\n{F}\n```", F),
        (f"```python\n{F}", F),
        (f"```py\r\n{F}\r\n```\r\n".replace("\n    ", "\r\n    "), F),
        (f"~~~python\n{F}\n~~~", F),
        (f"````python\n{F}\n````", F),
        ("1. so:\n\n   ```python\n   def f(x):\n       return x\n   ```", F),
        (f"```python\n{F} + 1\n```\nBetter:\n```python\n{F}\n```", F),
        (f"```python\n{F}\n```\nUse it:\n```python\nprint(f(1))\n```", F),
        (f"```python\n{F}\n```\n```bash\npython f.py\n```", F),
        (f"```python3.10\n{F}\n```", F),
        (f"```py3\n{F}\n```\n```python-repl\n>>> f(1)\n```", F),
        (f"```python\n{F}\n```\nTest:\n```python\nfrom solution import f\nassert f(1) == 1\n```", F),
        (f"```python\n{F}\n```\n```python\nf = f(3)\nprint(f)\n```", F),
        ("```python\nf = lambda x: x\n```\n```python\nf = f(3)\n```", "f = lambda x: x"),
        ("```python\nf: object = lambda x: x\n```\n```python\nimport f\n```", "f: object = lambda x: x"),
        (
            f"```python\n{F}\n```\n```python\nimport unittest\nfrom your_module import f\nclass T(unittest.TestCase): pass\n```",
            F,
        ),
        ("```python\nf = 1\n```\n```python\nfrom math import sqrt as f\n```", "from math import sqrt as f"),
        (f"<think>\n```python\n{F} - 1\n```\n</think>\n```python\n{F}\n```", F),
        (f"```python\n{F}\n```\n```python\ndef f(x:\n```", F),
        ("f = abs", "f = abs"),
        ("if True:\n    def f(x): return x", "if True:\n    def f(x): return x"),
        ("from math import sqrt as f", "from math import sqrt as f"),
        *((code, code) for code in NESTED),
        *((f"```python\n{code}\n```", code) for code in WITH_FENCES),
        *((f"```{info}\n{F}\n```", F) for info in INFOS),
        (f"```markdown\n# Answer\n```python\n{F}\n```\n```", F),
        (f"````markdown\n# Answer\n```python\n{F}\n```\n````\nDone.", F),
        (f"```md\n```python\n{F} + 1\n```\n```\nBetter:\n```python\n{F}\n```", F),
        (f"~~~markdown\n```\n{F}\n```\n~~~\n```bash\nls\n```", F),
        (f"<think>maybe\n```python\n{F} - 1\n</think>\n```python\n{F}\n```", F),
        (f"maybe\n```python\n{F} - 1</think>```python\n{F}\n```\nI left out `</think>`.", F),
        (f"<think>\n```\n</think>\n<think>~~~\n</think>{F}", F),
        ("```python\nf = '</think>'.strip\n```", "f = '</think>'.strip"),
        (f"```python\n{F}\n```.\nDone", F),
        (f"```python\n{F}\n``` \n```\nf = lambda x: 1\n```!", "f = lambda x: 1"),
        (f"\ufeff{F}", F),
        (f"\ufeff```python\n{F}\n```", F),
        (f"```python\n\ufeff{F}\n```", F),
    ],
)
def test_program_of_a_response(text: str, found: str) -> None:
    assert source.read(text, "f")["code"].strip() == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no_code"),
        ("Sorry, I cannot.", "no_code"),
        ("Sorry", "no_code"),
        ("```python\ndef f(x:\n```", "no_code"),
        ("```python\n\n```", "no_code"),
        ("```{.bash}\nf = 1\n```", "no_code"),
        (f"<think>\n```python\n{F}\n```\n</think>\nI cannot.", "no_code"),
        ("```markdown\nf = 1\n```", "no_code"),
        ("```java\nint f(int x) { return x; }\n```", "no_code"),
        ("def f(x): return '\0'", "no_code"),
        ("def f(x): return " + "(" * 5000 + "1" + ")" * 5000, "no_code"),
        ("def f(x):\n" + "".join(" " * i + "if x:\n" for i in range(1, 200)) + " " * 200 + "pass", "no_code"),
        ("def f(x): return 1\n" + "x = 1\n" * 60000, "no_code"),
        ("```python\ndef g(x): return x\n```", "no_entry_point"),
        ("class A:\n    def f(self, x): return x", "no_entry_point"),
        ("def g():\n    f = 1", "no_entry_point"),
        ("if True:\n    def g():\n        f = 1", "no_entry_point"),
    ],
)
def test_responses_without_a_program(judge: CodeJudge, text: str, reason: str) -> None:
    said = judge.judge(prompt("assert f(1) == 1"), text)
    assert (said.verdict, said.reason) == (Verdict.unparsable if reason == "no_code" else Verdict.wrong, reason)


@pytest.mark.parametrize(
    "text",
    [
        "x = [1 " + "for x in y " * 25000 + "]",
        "x" * 5_000_000,
        "-" * 250_000 + "1",
        "f(" * 80_000,
        "a\n" * 120_000,
        "```" * 80_000,
        "\ud800" * 1000,
        "```python\n" * 50_000,
        "~" * 300_000 + "`",
        "```" + " " * 300_000 + "`",
        ("```python\n" + "a=1\n" * 60_000 + "```\n") * 16,
    ],
    ids=["nested loops", "5 MB", "minus signs", "calls", "lines", "ticks", "surrogates", "fences", "tildes", "spaces", "blocks"],
)  # fmt: skip
def test_hostile_responses_end_in_time(judge: CodeJudge, text: str) -> None:
    begun = time.monotonic()
    assert judge.judge(prompt("assert f(1) == 1"), text).verdict in (Verdict.unparsable, Verdict.wrong)
    assert time.monotonic() - begun < 10
    assert judge.judge(prompt("assert f(1) == 1"), F).verdict is Verdict.correct


def test_a_long_chain_of_branches_is_read(judge: CodeJudge) -> None:
    """A chain of `elif` is as deep as it is long, and every branch would be walked once for each above it."""
    chain = "if y == 0: z = 0\n" + "".join(f"elif y == {i}: z = {i}\n" for i in range(1, 1100))
    assert judge.judge(prompt("assert f(1) == 1"), f"y = 5\n{chain}{F}").verdict is Verdict.correct
    assert judge.judge(prompt("assert f(1) == 1"), f"y = 5\n{chain}").reason == "no_entry_point"


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
def test_what_reading_dies_of_is_no_program(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def fail(text: str) -> list[str]:
        raise error

    monkeypatch.setattr(source, "fenced", fail)
    assert source.read(F, "f") == {"reason": "no_code", "detail": f"reading it ends with {error.__name__}"}


def test_the_answer_of_a_long_response_is_among_the_blocks_that_are_parsed() -> None:
    draft = "```python\n" + "a=1\n" * 60_000 + "```\n"
    assert source.read(draft * 3 + f"```python\n{F}\n```", "f")["code"] == F
    assert source.read(f"```python\n{F}\n```\n" + draft * 2, "f")["code"] == F
    assert source.read("```python\n" + "x=1\n" * 60_000 + "```\n" + draft, "x")["reason"] == "no_entry_point"


def test_indentation_of_a_block_is_cut_where_all_lines_have_it() -> None:
    code = 'def f(x):\n    s = """a\n   \n  b"""\n    return s'
    text = "\n".join("  " + line for line in ["```python", *code.split("\n"), "```"])
    assert source.read(text, "f")["code"] == code
    assert source.read("```python\n  def f(x):\n\n \n   return x\n```", "f")["code"] == "def f(x):\n\n\n return x"
    assert source.read("```python\n\tf = 1\n\tx = 2\n```", "f")["code"] == "f = 1\nx = 2"


def blocks(*codes: str) -> str:
    return "\n".join(f"So:\n```python\n{code}\n```" for code in codes)


H = "def h(x): return x + 1"
USES = "def f(x): return h(x)"


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (("import math", "def f(x): return math.floor(x)"), "import math\ndef f(x): return math.floor(x)"),
        (("from typing import List, Any", "def f(x: List): return x"), "from typing import List, Any\ndef f(x: List): return x"),
        ((H, USES), f"{H}\n{USES}"),
        ((f"import math\n{H}\nx = h(3)\nprint(x, math)", USES), f"{H}\n{USES}"),
        ((H.replace("1", "2"), H, USES), f"{H}\n{USES}"),
        ((f"{H}\ndef f(x): return 0", f"{H.replace('1', '2')}\n{USES}"), f"{H.replace('1', '2')}\n{USES}"),
        (("M = 7", "@staticmethod\ndef h(x): return x % M", USES), f"M = 7\n@staticmethod\ndef h(x): return x % M\n{USES}"),
        (("h = f(3)", USES), USES),
        ((USES, "h = 3"), USES),
        (("import os", f"from __future__ import annotations\n{F}\nos"), f"from __future__ import annotations\n{F}\nos"),
        (("x = 3\nimport math", F), F),
    ],
)  # fmt: skip
def test_what_a_block_lacks_is_taken_from_earlier_ones(parts: tuple[str, ...], found: str) -> None:
    assert source.read(blocks(*parts), "f")["code"] == found


def test_blocks_that_belong_together_pass(judge: CodeJudge) -> None:
    assert (
        judge.judge(
            prompt("assert f(1) == 2"), blocks("import math", "def h(x): return math.floor(x)", H, USES)
        ).verdict
        is Verdict.correct
    )
    assert (
        source.read(blocks("import sys", "print(sys.stdin.read())"), None)["code"]
        == "import sys\nprint(sys.stdin.read())"
    )


def test_longest_program_is_run_where_nothing_is_called() -> None:
    text = "```python\nn = int(input())\nprint(n)\n```\nor\n```python\nprint(1)\n```"
    assert source.read(text, None)["code"] == "n = int(input())\nprint(n)"


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_end_of_the_process_that_reads_responses(how: int) -> None:
    """A response that crashes Python's parser has no program, and another process reads the next one.

    One that was killed from outside says nothing of the response, which is read again.
    """
    judge = CodeVerifier(timeout_s=5.0).load()
    reader = judge._runner.sandbox.reader(Limits())
    reader.begin("read", {})
    judge._runner._reader = reader
    judge._runner._await_ready(reader)
    (pid,) = youngest(judge._runner.sandbox.zygote_pid)
    os.kill(pid, how)
    said = judge.judge(prompt("assert f(1) == 1"), F)
    assert (said.verdict, said.reason) == (
        (Verdict.unparsable, "no_code") if how == signal.SIGSEGV else (Verdict.correct, "")
    )
    assert judge.judge(prompt("assert f(1) == 1"), F).verdict is Verdict.correct
    judge.close()


def youngest(zygote: int | None) -> list[int]:
    """Return the processes that the zygote of level L3 or L2 has forked."""
    pids = [zygote]
    while True:
        pid = pids[-1]
        below = [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        if not below:
            return [int(pids[-1] or 0)]
        pids.append(below[-1])
