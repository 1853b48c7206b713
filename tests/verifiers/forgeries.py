"""Programs whose function doubles no number, and that try to be judged as if it did.

The task: `f(21)` is 42. Each is a way to cheat a checker that runs in the program's process, believes its exit code, or
believes what it prints. None of them knows the answer beforehand; some look for it.
"""

LINES = r"""
LINES = (b'V{"result":"pass","detail":""}\n{"value":42.5}\n{"result":"pass"}\n{"loaded":true}\npass\nPASS\nok\nTrue\n1\n')
"""
"""Texts that some checker may take for a verdict."""

HACKED = """
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __hash__(self): return 42
"""

AWAY = ("closed and asleep", "jump over the assert")
"""Those that wait for a deadline."""

FORGERIES: dict[str, str] = {
    "exit code when loaded": "import os\nos._exit(0)",
    "exit code when called": "import os\ndef f(x): os._exit(0)",
    "sys.exit when loaded": "import sys\nsys.exit(0)",
    "sys.exit when called": "import sys\ndef f(x): sys.exit(0)",
    "exit at the end": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return x",
    "exit by a hook": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x): return x",
    "exit by an alarm": "import os, signal\nsignal.signal(signal.SIGALRM, lambda *a: os._exit(0))\ndef f(x):\n    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    while True: pass",
    "exit by a thread": "import os, threading, time\ndef f(x):\n    threading.Thread(target=os._exit, args=(0,)).start()\n    time.sleep(1)",
    "exit by a finalizer": "import os\nclass E:\n    def __del__(self): os._exit(0)\ne = E()\ndef f(x): return x",
    "lines by a finalizer": LINES
    + "import os\nclass E:\n    def __del__(self, write=os.write): write(4, LINES)\ne = E()\ndef f(x): return x",
    "lines by a flush": LINES
    + "import os, sys\nclass E:\n    closed = False\n    def write(self, text): return len(text)\n    def flush(self): os.write(4, LINES), os._exit(0)\nsys.stdout = E()\ndef f(x): return x",
    "a collector of its own": "import gc, os\ngc.collect = gc.get_objects = lambda: os._exit(0)\ndef f(x): return x",
    "printed sentinel": "def f(x): return x\nprint('PASS\\nok\\nAll tests passed', flush=True)",
    "equal object": f"class E:{HACKED}\ndef f(x): return E()",
    "equal int": f"class E(int):{HACKED}\ndef f(x): return E(7)",
    "equal float": f"class E(float):{HACKED}\ndef f(x): return E(7)",
    "equal str": f"class E(str):{HACKED}\ndef f(x): return E('42')",
    "equal list": f"class E(list):{HACKED}\ndef f(x): return E([42])",
    "mock that equals anything": "from unittest.mock import ANY\ndef f(x): return ANY",
    "equal in a list": f"class E:{HACKED}\ndef f(x): return [E()]",
    "patched comparison": "import builtins, operator, math\nfor m in (builtins, operator, math):\n    for n in ('eq', 'ne', 'isclose', 'all', 'any', 'abs', 'bool', 'isinstance', 'type', 'repr', 'sorted', 'len'):\n        if hasattr(m, n): setattr(m, n, lambda *a, **k: True)\ndef f(x): return x",
    "patched json": 'import json\njson.dumps = lambda *a, **k: \'{"result": "pass", "exit": 0, "detail": ""}\'\njson.loads = lambda *a, **k: {\'result\': \'pass\', \'detail\': \'\'}\nimport sys\nfor m in list(sys.modules.values()):\n    if hasattr(m, \'dumps\') and \'values\' in m.__name__: m.dumps = lambda t: b\'V{"result":"pass","detail":""}\'\ndef f(x): return x',
    "patched channel": "import sys\nfor m in list(sys.modules.values()):\n    if hasattr(m, 'Channel'):\n        m.Channel.send = lambda self, tree, prefix=b'': __import__('os').write(4, b'V{\"result\":\"pass\",\"detail\":\"\"}\\n')\ndef f(x): return x",
    "patched exit": "import os, sys\nos._exit = sys.exit = lambda *a: None\ndef f(x): return x",
    "lines to every descriptor": LINES
    + "import os\ndef f(x):\n    for fd in range(3, 64):\n        try: os.write(fd, LINES)\n        except OSError: pass\n    return x",
    "lines when loaded": LINES
    + "import os\nfor fd in range(64):\n    try: os.write(fd, LINES)\n    except OSError: pass\ndef f(x): return x",
    "lines and the end": LINES
    + "import os\nfor fd in range(64):\n    try: os.write(fd, LINES)\n    except OSError: pass\nos._exit(0)",
    "a verdict instead of an answer": 'import os\ndef f(x):\n    os.write(4, b\'V{"result":"pass","detail":""}\\n\')\n    os._exit(0)',
    "closed and asleep": "import os, time\ndef f(x):\n    print('PASS', flush=True)\n    os.closerange(0, 64)\n    time.sleep(60)",
    "expected value in the caller's code": "import sys\ndef f(x):\n    frame = sys._getframe(1)\n    while frame:\n        for c in frame.f_code.co_consts:\n            if type(c) is int and c > x: return c\n        frame = frame.f_back\n    return x",
    "expected value in the caller's variables": "import sys\ndef f(x):\n    frame = sys._getframe(1)\n    while frame:\n        for space in (frame.f_locals, frame.f_globals):\n            for name in ('expected', 'answer', 'output', 'want'):\n                if name in space: return space[name]\n        frame = frame.f_back\n    return x",
    "expected value in all objects": "import gc, re\ndef f(x):\n    for o in gc.get_objects():\n        for t in (o.values() if type(o) is dict else o if type(o) in (list, tuple) else ()):\n            if type(t) is str:\n                m = re.search(r'f\\(21\\) *== *(\\d+)', t) or re.search(r'\"expected\": *(\\d+)', t)\n                if m: return int(m[1])\n    return x",
    "expected value by the code of the caller": "import gc, types\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, types.FunctionType) and 'assert' in str(o.__code__.co_filename):\n            return max(c for c in o.__code__.co_consts if type(c) is int)\n    return x",
    "jump over the assert": "import sys\ndef f(x):\n    frame = sys._getframe(1)\n    def trace(frame, event, arg):\n        try: frame.f_lineno += 1\n        except ValueError: pass\n        return trace\n    frame.f_trace = trace\n    sys.settrace(trace)\n    return x",
    "other numbers": "import ctypes\ndef f(x):\n    for n in range(22, 200): ctypes.c_int.from_address(id(n) + 24).value = x\n    return x",
    "raise the end of the test": "class _EndOfTestError(BaseException): pass\ndef f(x): raise _EndOfTestError",
    "raise SystemExit": "class Leave(SystemExit): pass\ndef f(x): raise Leave(0)",
    "raise what ends loops": "def f(x): raise StopIteration",
    "raise what ends generators": "def f(x): raise GeneratorExit",
    "type that lies": "class E:\n    __class__ = int\n    def __index__(self): return 42\n    __int__ = __index__\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "truth that lies": "class E:\n    def __bool__(self): return True\n    def __getattr__(self, n): return lambda *a: True\ndef f(x): return E()",
}


ASSERTS = "assert f(21) == 42"
CALL = '{"args": [21], "expected": 42}'
PRINTING = '{"input": "21\\n", "output": "42\\n"}'
