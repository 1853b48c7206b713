"""Ordinary programs, one or more for each part of the standard library that answers use: name, text, what it prints.

Each reads from a stdin of "3\\n4\\n" if it reads at all. What each prints was written down from a plain interpreter.
"""

STDIN = "3\n4\n"

PROGRAMS: list[tuple[str, str, str]] = [
    (
        "collections: Counter",
        'from collections import Counter\nprint(Counter("mississippi").most_common(2))',
        "[('i', 4), ('s', 4)]\n",
    ),
    (
        "collections: defaultdict",
        'from collections import defaultdict\nd = defaultdict(list)\nfor i, w in enumerate("a b a c".split()): d[w].append(i)\nprint(dict(d))',
        "{'a': [0, 2], 'b': [1], 'c': [3]}\n",
    ),
    (
        "collections: deque",
        "from collections import deque\nd = deque([1, 2, 3], maxlen=3); d.append(4); d.rotate(1)\nprint(list(d))",
        "[4, 2, 3]\n",
    ),
    (
        "collections: namedtuple",
        'from collections import namedtuple\nP = namedtuple("P", "x y"); print(P(1, 2)._replace(x=5))',
        "P(x=5, y=2)\n",
    ),
    (
        "collections: OrderedDict",
        'from collections import OrderedDict\no = OrderedDict(a=1, b=2); o.move_to_end("a"); print(list(o))',
        "['b', 'a']\n",
    ),
    (
        "collections: ChainMap",
        'from collections import ChainMap\nprint(ChainMap({"a": 1}, {"a": 2, "b": 3})["b"])',
        "3\n",
    ),
    ("collections.abc", "from collections.abc import Mapping\nprint(isinstance({}, Mapping))", "True\n"),
    ("itertools: permutations", "import itertools\nprint(len(list(itertools.permutations(range(6)))))", "720\n"),
    (
        "itertools: groupby",
        'from itertools import groupby\nprint([(k, len(list(g))) for k, g in groupby("aaabbc")])',
        "[('a', 3), ('b', 2), ('c', 1)]\n",
    ),
    (
        "itertools: accumulate",
        'from itertools import accumulate, chain, product\nprint(list(accumulate([1, 2, 3])), list(chain([1], [2])), len(list(product("ab", repeat=3))))',
        "[1, 3, 6] [1, 2] 8\n",
    ),
    (
        "re: findall",
        'import re\nprint(re.findall(r"\\b(\\w)(\\w*)\\b", "hello big world"))',
        "[('h', 'ello'), ('b', 'ig'), ('w', 'orld')]\n",
    ),
    ("re: sub", 'import re\nprint(re.sub(r"(\\d+)", lambda m: str(int(m[1]) * 2), "a1b22"))', "a2b44\n"),
    (
        "re: named groups",
        'import re\nprint(re.match(r"(?P<year>\\d{4})-(?P<month>\\d\\d)", "2024-05").groupdict())',
        "{'year': '2024', 'month': '05'}\n",
    ),
    (
        "math: gcd",
        "import math\nprint(math.gcd(84, 36), math.lcm(4, 6), math.comb(10, 3), math.isqrt(99))",
        "12 12 120 9\n",
    ),
    (
        "math: floats",
        "import math\nprint(round(math.sin(1.0), 12), math.inf > 1e308, math.isnan(math.nan))",
        "0.841470984808 True True\n",
    ),
    ("cmath", "import cmath\nprint(round(abs(cmath.exp(1j * cmath.pi) + 1), 12))", "0.0\n"),
    (
        "heapq",
        "import heapq\nh = [5, 1, 4]; heapq.heapify(h); heapq.heappush(h, 0); print(heapq.heappop(h), heapq.nlargest(2, h))",
        "0 [5, 4]\n",
    ),
    (
        "bisect",
        "import bisect\na = [1, 3, 5]; bisect.insort(a, 4); print(a, bisect.bisect_left(a, 3))",
        "[1, 3, 4, 5] 1\n",
    ),
    (
        "json",
        'import json\nprint(json.dumps({"b": [1, 2.5, None], "a": "é"}, sort_keys=True), json.loads("[1, {}]"))',
        '{"a": "\\u00e9", "b": [1, 2.5, null]} [1, {}]\n',
    ),
    (
        "datetime: delta",
        "from datetime import date, timedelta\nprint(date(2024, 2, 28) + timedelta(days=2))",
        "2024-03-01\n",
    ),
    (
        "datetime: strptime",
        'from datetime import datetime\nprint(datetime.strptime("2024-05-06 07:08", "%Y-%m-%d %H:%M").isoformat())',
        "2024-05-06T07:08:00\n",
    ),
    (
        "datetime: zone",
        "from datetime import datetime, timezone\nprint(datetime(2024, 1, 1, tzinfo=timezone.utc).timestamp())",
        "1704067200.0\n",
    ),
    ("calendar", "import calendar\nprint(calendar.monthrange(2024, 2)[1], calendar.isleap(1900))", "29 False\n"),
    (
        "decimal",
        "from decimal import Decimal, getcontext\ngetcontext().prec = 30\nprint(Decimal(1) / Decimal(7))",
        "0.142857142857142857142857142857\n",
    ),
    ("fractions", "from fractions import Fraction\nprint(sum(Fraction(1, n) for n in range(1, 8)))", "363/140\n"),
    (
        "statistics",
        'import statistics\nprint(statistics.median([3, 1, 2]), statistics.pstdev([1, 2, 3, 4]), statistics.mode("aab"))',
        "2 1.118033988749895 a\n",
    ),
    (
        "random with a seed",
        'import random\nr = random.Random(5); print(r.randint(1, 100), r.choice("abc"), sorted(r.sample(range(10), 3)))',
        "80 b [0, 5, 8]\n",
    ),
    ("random without a seed", "import random\nprint(0 <= random.random() < 1)", "True\n"),
    ("string", 'import string\nprint(string.ascii_letters[:3], string.Template("$x!").substitute(x=1))', "abc 1!\n"),
    (
        "textwrap",
        'import textwrap\nprint(textwrap.fill("one two three four", 9)); print(textwrap.dedent("  a\\n  b"))',
        "one two\nthree\nfour\na\nb\n",
    ),
    (
        "functools: lru_cache",
        "from functools import lru_cache\n@lru_cache(None)\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\nprint(fib(90))",
        "2880067194370816120\n",
    ),
    (
        "functools: reduce",
        "from functools import reduce, partial, cmp_to_key\nprint(reduce(lambda a, b: a * b, range(1, 6)), partial(pow, 2)(5), sorted([3, 1], key=cmp_to_key(lambda a, b: a - b)))",
        "120 32 [1, 3]\n",
    ),
    (
        "functools: singledispatch",
        'from functools import singledispatch\n@singledispatch\ndef f(x): return "other"\n@f.register\ndef _(x: int): return "int"\nprint(f(1), f("a"))',
        "int other\n",
    ),
    (
        "operator",
        'import operator\nprint(sorted([(1, "b"), (2, "a")], key=operator.itemgetter(1)), operator.mul(3, 4))',
        "[(2, 'a'), (1, 'b')] 12\n",
    ),
    (
        "copy",
        "import copy\na = [[1], [2]]; b = copy.deepcopy(a); b[0].append(9); print(a, b)",
        "[[1], [2]] [[1, 9], [2]]\n",
    ),
    (
        "dataclasses",
        "from dataclasses import dataclass, field, asdict, replace\n@dataclass(order=True, frozen=True)\nclass P:\n    x: int\n    y: list = field(default_factory=list)\nprint(asdict(P(1)), replace(P(1), x=3), P(1) < P(2))",
        "{'x': 1, 'y': []} P(x=3, y=[]) True\n",
    ),
    (
        "enum",
        "from enum import Enum, IntFlag, auto\nclass C(Enum):\n    RED = auto()\n    BLUE = auto()\nclass F(IntFlag):\n    A = 1\n    B = 2\nprint(C.RED, list(C)[1].value, F.A | F.B)",
        "C.RED 2 3\n",
    ),
    (
        "typing",
        'from typing import List, Optional, TypeVar, Generic, NamedTuple, get_type_hints\nT = TypeVar("T")\nclass Box(Generic[T]):\n    def __init__(self, x: T): self.x = x\nclass N(NamedTuple):\n    a: int = 3\ndef f(x: Optional[List[int]] = None) -> int: return 0\nprint(Box[int](3).x, N(), get_type_hints(f)["return"])',
        "3 N(a=3) <class 'int'>\n",
    ),
    (
        "abc",
        'from abc import ABC, abstractmethod\nclass A(ABC):\n    @abstractmethod\n    def f(self): ...\ntry: A()\nexcept TypeError as e: print("abstract")',
        "abstract\n",
    ),
    (
        "contextlib",
        'from contextlib import contextmanager, suppress, ExitStack, redirect_stdout\n@contextmanager\ndef c():\n    yield 1\nwith c() as x, suppress(KeyError), ExitStack(): print(x); {}["a"]',
        "1\n",
    ),
    (
        "io",
        'import io, contextlib\nb = io.StringIO()\nwith contextlib.redirect_stdout(b): print("inner")\nprint(repr(b.getvalue()), io.BytesIO(b"abc").read(2))',
        "'inner\\n' b'ab'\n",
    ),
    (
        "hashlib",
        'import hashlib\nprint(hashlib.md5(b"a").hexdigest(), hashlib.sha256(b"a").hexdigest()[:16])',
        "0cc175b9c0f1b6a831c399e269772661 ca978112ca1bbdca\n",
    ),
    (
        "hmac",
        'import hmac\nprint(hmac.new(b"k", b"m", "sha1").hexdigest())',
        "772b71c8a2997e768be01d9711e4a4f34a24ef33\n",
    ),
    (
        "base64",
        'import base64, binascii, zlib\nprint(base64.b64encode(b"hi"), binascii.hexlify(b"a"), zlib.crc32(b"a"))',
        "b'aGk=' b'61' 3904355907\n",
    ),
    (
        "zlib and bz2",
        'import zlib, bz2, lzma, gzip\nprint([len(m.decompress(m.compress(b"x" * 1000))) for m in (zlib, bz2, lzma, gzip)])',
        "[1000, 1000, 1000, 1000]\n",
    ),
    (
        "struct",
        'import struct\nprint(struct.pack("<IH", 1, 2), struct.unpack(">h", b"\\xff\\xfe"))',
        "b'\\x01\\x00\\x00\\x00\\x02\\x00' (-2,)\n",
    ),
    (
        "array",
        'from array import array\na = array("i", [1, 2]); a.append(3); print(a.tolist(), a.itemsize)',
        "[1, 2, 3] 4\n",
    ),
    (
        "uuid",
        'import uuid\nprint(uuid.uuid5(uuid.NAMESPACE_DNS, "x"), len(str(uuid.uuid4())))',
        "05b16a01-46c6-56dd-bd6e-c6dfb4a1427a 36\n",
    ),
    ("secrets", "import secrets\nprint(len(secrets.token_hex(4)))", "8\n"),
    (
        "time",
        "import time\nt = time.perf_counter(); time.sleep(0.001); print(time.perf_counter() > t, time.gmtime(0).tm_year)",
        "True 1970\n",
    ),
    (
        "asyncio: gather",
        "import asyncio\nasync def f(x):\n    await asyncio.sleep(0.001)\n    return x * 2\nasync def main(): return await asyncio.gather(*map(f, range(4)))\nprint(asyncio.run(main()))",
        "[0, 2, 4, 6]\n",
    ),
    (
        "asyncio: queue",
        "import asyncio\nasync def main():\n    q = asyncio.Queue()\n    async def put():\n        for i in range(3): await q.put(i)\n    task = asyncio.create_task(put())\n    out = [await q.get() for _ in range(3)]\n    await task\n    return out\nprint(asyncio.run(main()))",
        "[0, 1, 2]\n",
    ),
    ("asyncio: to_thread", "import asyncio\nprint(asyncio.run(asyncio.to_thread(sum, [1, 2, 3])))", "6\n"),
    (
        "asyncio: timeout",
        'import asyncio\nasync def main():\n    try: await asyncio.wait_for(asyncio.sleep(10), 0.001)\n    except asyncio.TimeoutError: return "timeout"\nprint(asyncio.run(main()))',
        "timeout\n",
    ),
    (
        "threading",
        "import threading\ntotal, lock = 0, threading.Lock()\ndef add():\n    global total\n    for _ in range(100):\n        with lock: total += 1\nts = [threading.Thread(target=add) for _ in range(8)]\n[t.start() for t in ts]; [t.join() for t in ts]\nprint(total)",
        "800\n",
    ),
    (
        "threading: event",
        "import threading\ne, out = threading.Event(), []\nt = threading.Thread(target=lambda: (e.wait(), out.append(1))); t.start(); e.set(); t.join(); print(out)",
        "[1]\n",
    ),
    (
        "thread pool",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool: print(list(pool.map(lambda x: x ** 2, range(5))))",
        "[0, 1, 4, 9, 16]\n",
    ),
    (
        "queue",
        "import queue\nq = queue.PriorityQueue(); [q.put(x) for x in (3, 1, 2)]; print([q.get() for _ in range(3)])",
        "[1, 2, 3]\n",
    ),
    (
        "a thread that outlives the main program",
        'import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.01), print("late"))).start()\nprint("early")',
        "early\nlate\n",
    ),
    ("atexit", 'import atexit\natexit.register(print, "bye")\nprint("hi")', "hi\nbye\n"),
    ("stdin: input", "print(sum(int(input()) for _ in range(2)))", "7\n"),
    ("stdin: sys.stdin", "import sys\nfor line in sys.stdin: print(line.strip()[::-1])", "3\n4\n"),
    ("stdin: bytes", "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))", "7\n"),
    ("stdin: open(0)", "print(open(0).read().split())", "['3', '4']\n"),
    ("sys.exit", 'import sys\nprint("done"); sys.exit(0)', "done\n"),
    ("exit", 'n = int(input())\nif n == 3:\n    print("three")\n    exit()\nprint("other")', "three\n"),
    ("quit in a function", 'def main():\n    print("done")\n    quit(0)\nmain()', "done\n"),
    ("help", "print(callable(help), repr(exit))", "True Use exit() or Ctrl-D (i.e. EOF) to exit\n"),
    ("stdout that is closed", "import sys\nprint(input())\nsys.stdout.close()", "3\n"),
    ("stdout in a with", "import sys\nwith sys.stdout as out: print(input(), file=out)", "3\n"),
    ("stdout that is replaced", "import io, sys\nprint(input())\nsys.stdout = io.StringIO()\nprint(input())", "3\n"),
    ("stdout that is None", "import sys\nprint(input())\nsys.stdout = None\nprint(4)", "3\n"),
    ("stdout that is gone", "import sys\nprint(input())\ndel sys.stdout, sys.__stdout__", "3\n"),
    (
        "stdout with another buffer",
        "import io, sys\nprint(input())\nsys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, 'w')))\nprint(input())",
        "3\n4\n",
    ),
    (
        "stdout that is encoded anew",
        "import io, sys\nprint(input())\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')\nprint('é')",
        "3\né\n",
    ),
    (
        "stdout that is detached",
        "import io, sys\nprint(input())\nsys.stdout = io.TextIOWrapper(sys.stdout.detach())\nprint(input())",
        "3\n4\n",
    ),
    ("open(1) without a flush", "out = open(1, 'w')\nout.write(input())", "3"),
    (
        "open(1) without a flush, held by a cache",
        "import functools\n@functools.lru_cache\ndef out(fd): return open(fd, 'w', closefd=False)\nout(1).write(input())",
        "3",
    ),
    (
        "finalizers",
        'import sys\nname = "bye"\nclass A:\n    def __del__(self): print(name)\na = A()\na.me = a\nb = A()\nprint("hi")',
        "hi\nbye\nbye\n",
    ),
    (
        "own file",
        "import os, sys\nprint(os.path.basename(os.path.abspath(__file__)), sys.argv[0])",
        "program.py program.py\n",
    ),
    (
        "own source",
        "import inspect\ndef f(x):\n    return x + 1\nclass C:\n    n = 1\nprint(inspect.getsource(f) + inspect.getsource(C), end='')",
        "def f(x):\n    return x + 1\nclass C:\n    n = 1\n",
    ),
    ("main guard", 'def main(): print("main")\nif __name__ == "__main__": main()', "main\n"),
    (
        "recursion",
        "import sys\nsys.setrecursionlimit(20000)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(5000))",
        "5000\n",
    ),
    (
        "recursion in a thread",
        "import sys, threading\nthreading.stack_size(64 * 1024 * 1024); sys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(20000))); t.start(); t.join()",
        "20000\n",
    ),
    ("generators", "def g():\n    x = yield 1\n    yield x\nit = g(); print(next(it), it.send(5))", "1 5\n"),
    (
        "comprehensions",
        'print({x: [y for y in range(x)] for x in range(4) if x % 2}, {*"aab"} == {"a", "b"})',
        "{1: [0], 3: [0, 1, 2]} True\n",
    ),
    (
        "classes",
        'class V:\n    __slots__ = ("x",)\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n    def __repr__(self): return f"V({self.x})"\n    @property\n    def d(self): return self.x * 2\nprint(V(1) + V(2), V(3).d)',
        "V(3) 6\n",
    ),
    (
        "metaclass",
        'class M(type):\n    def __new__(m, n, b, d): return super().__new__(m, n, b, {**d, "tag": n.lower()})\nclass A(metaclass=M): pass\nprint(A.tag)',
        "a\n",
    ),
    (
        "decorators",
        "def twice(f):\n    def g(*a): return f(*a) * 2\n    return g\n@twice\ndef h(x): return x + 1\nprint(h(3))",
        "8\n",
    ),
    (
        "exceptions",
        'class E(ValueError): pass\ntry:\n    try: raise E("a")\n    except ValueError as e: raise KeyError("b") from e\nexcept KeyError as e: print(type(e.__cause__).__name__)\nfinally: print("finally")',
        "E\nfinally\n",
    ),
    (
        "exception groups",
        'try: raise ExceptionGroup("g", [ValueError(1), TypeError(2)])\nexcept* ValueError as g: print(len(g.exceptions))\nexcept* TypeError as g: print("type")',
        "1\ntype\n",
    ),
    (
        "match",
        'def f(x):\n    match x:\n        case {"k": [a, *rest]}: return a, rest\n        case int() | float() if x > 1: return "big"\n        case _: return None\nprint(f({"k": [1, 2, 3]}), f(5), f("x"))',
        "(1, [2, 3]) big None\n",
    ),
    (
        "walrus and fstrings",
        'if (n := len("abcd")) > 3: print(f"{n=} {3.14159:.2f} {n:>5}|{1_000_000:,}")',
        "n=4 3.14     4|1,000,000\n",
    ),
    ("big integers", "print(pow(3, 1000, 10**9 + 7), len(str(2**10000)))", "56888193 3011\n"),
    (
        "bytes",
        'b = bytearray(b"abc"); b[0] = 120; print(bytes(b), b"a,b".split(b","), "é".encode())',
        "b'xbc' [b'a', b'b'] b'\\xc3\\xa9'\n",
    ),
    (
        "unicode",
        'import unicodedata\nprint(unicodedata.normalize("NFD", "é").encode(), unicodedata.name("λ"), "ß".upper(), "日本"[::-1])',
        "b'e\\xcc\\x81' GREEK SMALL LETTER LAMDA SS 本日\n",
    ),
    (
        "sorting",
        'print(sorted("bca", reverse=True), sorted([(2, "a"), (1, "b")]), max([1, 3, 2], key=lambda x: -x))',
        "['c', 'b', 'a'] [(1, 'b'), (2, 'a')] 1\n",
    ),
    ("sets", "print(sorted({1, 2} | {3}), {1, 2} & {2}, frozenset([1]) <= {1, 2})", "[1, 2, 3] {2} True\n"),
    (
        "pprint",
        'from pprint import pformat\nprint(pformat({"b": 1, "a": list(range(5))}, width=20))',
        "{'a': [0,\n       1,\n       2,\n       3,\n       4],\n 'b': 1}\n",
    ),
    ("csv", "import csv, io\nprint(list(csv.reader(io.StringIO('a,\"b,c\"\\n1,2'))))", "[['a', 'b,c'], ['1', '2']]\n"),
    (
        "configparser",
        'import configparser\nc = configparser.ConfigParser(); c.read_string("[a]\\nx = 1"); print(c["a"].getint("x"))',
        "1\n",
    ),
    ("xml", 'import xml.etree.ElementTree as E\nprint(E.fromstring("<a><b x=\'1\'/></a>").find("b").get("x"))', "1\n"),
    ("html", 'import html, html.parser\nprint(html.escape("<a>"), html.unescape("&eacute;"))', "&lt;a&gt; é\n"),
    (
        "urllib.parse",
        'from urllib.parse import urlparse, urlencode\nprint(urlparse("http://a.b/c?d=1").query, urlencode({"a": "b c"}))',
        "d=1 a=b+c\n",
    ),
    (
        "difflib",
        'import difflib\nprint(difflib.get_close_matches("appel", ["ape", "apple"]), difflib.SequenceMatcher(None, "ab", "ac").ratio())',
        "['apple', 'ape'] 0.5\n",
    ),
    ("inspect", "import inspect\nprint(inspect.signature(lambda a, b=1, *c: 0))", "(a, b=1, *c)\n"),
    ("ast", 'import ast\nprint(ast.literal_eval("[1, (2,)]"), ast.unparse(ast.parse("x=1")))', "[1, (2,)] x = 1\n"),
    (
        "types",
        'import types\nprint(types.SimpleNamespace(a=1), types.MappingProxyType({"a": 1})["a"])',
        "namespace(a=1) 1\n",
    ),
    ("weakref", "import weakref\nclass A: pass\na = A(); r = weakref.ref(a); print(r() is a)", "True\n"),
    (
        "graphlib",
        'from graphlib import TopologicalSorter\nprint(list(TopologicalSorter({"b": {"a"}, "c": {"b"}}).static_order()))',
        "['a', 'b', 'c']\n",
    ),
    (
        "zoneinfo",
        'from datetime import datetime\nfrom zoneinfo import ZoneInfo\nprint(datetime(2024, 7, 1, tzinfo=ZoneInfo("UTC")).isoformat())',
        "2024-07-01T00:00:00+00:00\n",
    ),
    (
        "sqlite in memory",
        'import sqlite3\nc = sqlite3.connect(":memory:"); c.execute("create table t (x)"); c.execute("insert into t values (1)"); print(c.execute("select sum(x) + 1 from t").fetchone())',
        "(2,)\n",
    ),
    ("pickle", 'import pickle\nprint(pickle.loads(pickle.dumps({"a": (1, {2})})))', "{'a': (1, {2})}\n"),
    (
        "logging",
        'import logging, sys\nlogging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s"); logging.warning("w")',
        "WARNING w\n",
    ),
    (
        "warnings",
        'import warnings\nwith warnings.catch_warnings(record=True) as w: warnings.simplefilter("always"); warnings.warn("x"); print(len(w))',
        "1\n",
    ),
    (
        "traceback",
        "import traceback\ntry: 1 / 0\nexcept ZeroDivisionError: print(traceback.format_exc().splitlines()[-1])",
        "ZeroDivisionError: division by zero\n",
    ),
    (
        "argparse",
        'import argparse\np = argparse.ArgumentParser(); p.add_argument("--n", type=int, default=3); print(p.parse_args([]).n)',
        "3\n",
    ),
    (
        "unittest",
        "import unittest, io\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(1, 1)\nprint(unittest.TextTestRunner(stream=io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(T)).wasSuccessful())",
        "True\n",
    ),
    (
        "signal: alarm",
        'import signal\nclass Late(Exception): pass\ndef late(*a): raise Late\nsignal.signal(signal.SIGALRM, late)\ntry:\n    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    while True: pass\nexcept Late: print("late")',
        "late\n",
    ),
    (
        "os facts",
        'import os\nprint(os.path.join("a", "b"), os.getpid() > 0, os.sep, os.cpu_count() > 0)',
        "a/b True / True\n",
    ),
    (
        "pathlib",
        'from pathlib import PurePosixPath, Path\nprint(PurePosixPath("/a/b.txt").suffix, Path("x").exists())',
        ".txt False\n",
    ),
    (
        "null device",
        'import os\nwith open(os.devnull, "w") as f: print("x", file=f)\nprint(open(os.devnull).read() == "")',
        "True\n",
    ),
    (
        "shlex and fnmatch",
        'import shlex, fnmatch\nprint(shlex.split("a \'b c\'"), fnmatch.fnmatch("a.py", "*.py"))',
        "['a', 'b c'] True\n",
    ),
    (
        "locale and codecs",
        'import codecs, locale\nprint(codecs.encode("abc", "rot13"), locale.getlocale()[1] is not None)',
        "nop True\n",
    ),
    (
        "locale of the user",
        'import locale\nlocale.setlocale(locale.LC_ALL, "")\nprint(f"{1234567:n}", locale.strxfrm("a"), "é")',
        "1234567 a é\n",
    ),
    (
        "a hundred threads",
        "import threading, time\ndone = []\ndef f(x):\n    time.sleep(0.05)\n    done.append(x)\nts = [threading.Thread(target=f, args=(x,)) for x in range(100)]\n[t.start() for t in ts]; [t.join() for t in ts]\nprint(sorted(done) == list(range(100)))",
        "True\n",
    ),
    ("ctypes", "import ctypes\nprint(ctypes.c_int(2**31).value, ctypes.sizeof(ctypes.c_double))", "-2147483648 8\n"),
    (
        "numbers and colorsys",
        "import numbers, colorsys\nprint(isinstance(1, numbers.Integral), colorsys.rgb_to_hsv(1, 0, 0))",
        "True (0.0, 1.0, 1)\n",
    ),
    (
        "sieve",
        "n = 20000; s = bytearray([1]) * (n + 1); s[0] = s[1] = 0\nfor i in range(2, int(n ** 0.5) + 1):\n    if s[i]: s[i * i::i] = bytearray(len(s[i * i::i]))\nprint(sum(s))",
        "2262\n",
    ),
    (
        "knapsack",
        "w, v, c = [1, 3, 4, 5], [1, 4, 5, 7], 7\nd = [0] * (c + 1)\nfor a, b in zip(w, v):\n    for j in range(c, a - 1, -1): d[j] = max(d[j], d[j - a] + b)\nprint(d[c])",
        "9\n",
    ),
    (
        "shortest path",
        'import heapq\ng = {"a": [("b", 1), ("c", 4)], "b": [("c", 2)], "c": []}\ndist, h = {}, [(0, "a")]\nwhile h:\n    d, u = heapq.heappop(h)\n    if u in dist: continue\n    dist[u] = d\n    for v, w in g[u]: heapq.heappush(h, (d + w, v))\nprint(dist)',
        "{'a': 0, 'b': 1, 'c': 3}\n",
    ),
    (
        "matrix",
        "a = [[1, 2], [3, 4]]\nprint([[sum(x * y for x, y in zip(r, c)) for c in zip(*a)] for r in a], list(zip(*a[::-1])))",
        "[[7, 10], [15, 22]] [(3, 1), (4, 2)]\n",
    ),
]
