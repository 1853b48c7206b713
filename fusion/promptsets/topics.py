"""Is a text about code, or about mathematics? Cues with points, in English and Chinese; no model.

How the published data sets were rid of code and mathematics is not known (FuseChat-3.0 says only that they were), so this is
our own rule: each cue has points and counts once, and two points decide. It gives the same answer on every machine, and
the cues that decided are named for every row that was dropped. It errs on both sides; what it does on real prompts is
measured in `tests/unit/test_filters.py`. A change of the cues changes prompts, so the prompts stage's `VERSION` goes up with it.
"""

import dataclasses
import re
from collections.abc import Callable

ENOUGH = 2
"""Points that decide."""

MAX_CHARS = 20_000
"""Characters that are looked at: what a prompt is about shows by then, and the time stays bounded."""


_URL = re.compile(r"https?://[^\s<>\"'）)]+")
"""Taken out before anything is looked for: `page.html` in an address says nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cue:
    """Something that speaks for a topic. Example: `Cue("python function", 2, re.compile("python function").search)`."""

    name: str
    points: int
    found: Callable[[str], object]
    """Truthy for a text that holds it."""


def cues_of(text: str, cues: tuple[Cue, ...]) -> tuple[str, ...]:
    """Return the names of the cues that decide for their topic, or () where they have fewer than `ENOUGH` points."""
    text = _URL.sub(" ", text[:MAX_CHARS])
    found, points = [], 0
    for cue in cues:
        if cue.found(text):
            found.append(cue.name)
            points += cue.points
            if points >= ENOUGH:
                return tuple(found)
    return ()


def _cue(name: str, points: int, *alternatives: str, flags: int = re.IGNORECASE) -> Cue:
    return Cue(name, points, re.compile("|".join(alternatives), flags).search)


def _word(alternatives: str) -> str:
    """Match whole words of a list; `\\b` would see no boundary between a Chinese character and a Latin letter."""
    return rf"(?<![A-Za-z0-9_])(?:{'|'.join(alternatives.split())})(?![A-Za-z0-9_])"


# ---- code -------------------------------------------------------------------------------------

_LANGUAGE = _word(
    r"python\d? javascript ecmascript java(?!\s(?:island|coffee|sea)) typescript node\.?js c\+\+ cpp c# (?:vb|asp)\.net golang"
    r" kotlin php perl matlab haskell vba vbs fortran cobol (?:no|my|t-)?sql promql codeql postgres(?:ql)? sqlite3? mongodb"
    r" graphql css3? xaml autolisp verilog vhdl nasm cuda hlsl glsl gdscript solidity powershell visual\sbasic awk regex(?:es)? regexp ocaml"
    r" numpy scipy matplotlib pytorch tensorflow sklearn scikit-learn django fastapi streamlit next\.?js reactjs react\.js"
    r" tailwind(?:css)? jquery laravel pyqt\d? dataframe nix-shell nixpkgs shell\s?scripts? smart\scontracts?"
)
"""Names that mean code wherever they stand: languages, and libraries that are not words of English."""

_TOOL = _word(
    r"html5? js svg bash scala basic lua pandas keras seaborn gensim opencv flask gradio react vue(?:\.?js|\d?) angular(?:js)? sveltekit"
    r" symfony spring\sboot docker(?:file|-compose)? kubernetes terraform git linux ubuntu ssh sshd cron(?:tab)? nginx ffmpeg selenium"
    r" beautiful\s?soup web\s?scrap(?:er|ing) langchain huggingface (?:rest(?:ful)?\s)?apis? arduino godot roblox unity3d"
    r" unreal\sengine android\sstudio xcode gradle npm webpack jest opengl compute\sshader x86(?:[-_]64)? (?:arm\s)?assembly"
    r" command\sline codebase source\scode pseudo-?code llvm databricks faiss websocket localhost visual\sstudio yaml"
    r" wordpress\splugin chrome\s(?:plugin|extension) browser\sconsole argparse jax cmake regular\sexpressions? octave odoo"
    r" jetpack\scompose discord\sbot gherkin fuzzer testbench ssms over\sclause stored\sprocedure unit\stest(?:s|ing)?"
)
"""Names that need a second cue."""

_NEWER = _word("rust ruby swift julia dart scheme lisp prolog pascal delphi elixir clojure")
"""Names that are words of English too: they count beside a word of code only."""

_ASK = (
    r"\b(?:write|create|make|generate|implement|develop|build|design|give|show|provide|need|want|modify|fix|debug|refactor|"
    r"optimi[sz]e|convert|translate|complete|rewrite|prepare|code|solve)\b"
)
_HOW = rf"(?:{_ASK}|\bhow\b|\bexamples? of\b|\bbest way to\b|\bproblem with\b|\berror\b)"
_THING = (
    r"\b(?:functions?|methods?|scripts?|programs?|codes?|class(?:es)?|algorithms?|macros?|modules?|parsers?|compilers?|"
    r"scrapers?|crawlers?|snippets?|shaders?|kernels?|plugins?|extensions?|web ?apps?|web ?servers?|web ?pages?|"
    r"quer(?:y|ies)|unit tests?|routines?|implementations?|simulations?|middleware)\b"
)
_CODE_WORD = r"\b(?:code|functions?|programs?|scripts?|class(?:es)?|implement\w*|pattern|lists?|arrays?|strings?)\b"

CODE = (
    _cue("code fence", 2, r"```[ \t]*[a-z+#]{1,12}[ \t]*\n"),
    _cue(
        "code syntax",
        2,
        r"^[ \t]*(?:async\s+)?def\s+\w+\s*\(",
        r"^[ \t]*class\s+\w+\s*[(:{]",
        r"^[ \t]*(?:import\s+[\w.]+(?:\s+as\s+\w+)?|from\s+[\w.]+\s+import\s+.+)\s*;?$",
        r"^[ \t]*#include\s*[<\"]",
        r"\b(?:public|private|protected)\s+(?:static|class|void|int|string|final)\b",
        r"\b(?:console\.log|System\.out\.print\w*|std::\w+|printf|document\.\w+|int main)\s*\(",
        r"\bfunction\s*\w*\s*\([^)\n]{0,200}\)\s*\{",
        r"\)\s*=>\s*[{(\w]",
        r"</?(?:div|span|html|body|head|script|table|svg|img|ul|li|input|button)\b[^>\n]{0,300}>",
        r"\bSELECT\b[^;]{1,300}?\bFROM\b\s+\w+\s+(?:WHERE|JOIN|ORDER|GROUP|INNER|LEFT)\b",
        r"^[ \t]*assert\s+\w+\(",
        r"\bstruct\s+\w+\s*\{",
        r"^[ \t]*(?:let|const|var)\s+\w+\s*=",
        r"[;{]\s*\n[^\n]*[;}]\s*(?:\n|$)",
        r"\b[a-z_]\w*\.[a-z_]\w*\([^)\n]{0,200}\)",
        r"^[ \t]*%%\w+",
        flags=re.IGNORECASE | re.MULTILINE,
    ),
    _cue(
        "asks for a function",
        2,
        rf"{_ASK}[^.?!\n]{{0,60}}\bfunctions?\b[^.?!\n]{{0,20}}\b(?:to|that|which|for|in|named|called|with)\b",
        rf"{_ASK}[^.?!\n]{{0,40}}\b(?:codes?|program)\s+(?:to|that|for|in|of|which|snippet)\b",
        r"\b(?:write|fix|debug|rewrite|refactor|modify|explain|generate|make|implement)\b[^.?!\n]{0,30}(?<!dress )"
        r"(?<!secret )(?<!zip )(?<!building )\bcode\b",
    ),
    _cue(
        "code in a language",
        2,
        rf"{_TOOL}\s+(?:codes?|script|program|function|library|module|app|query)\b",
        rf"\b(?:code|script|program|function|class|algorithm|app|query)\b[^.?!\n]{{0,40}}\b(?:in|using|with)\s+{_TOOL}",
        rf"{_NEWER}[^.?!\n]{{0,60}}{_CODE_WORD}(?<!list)(?<!pattern)",
        rf"\b(?:in|using|into|proper)\s+{_NEWER}(?=[^.?!\n]{{0,80}}{_CODE_WORD})",
        rf"\b(?:code|function|program|script|implement\w*)\b[^.?!\n]{{0,60}}\b(?:in|using|with|into)\s+{_NEWER}",
        rf"\b(?:list|array|string|class|struct|loop|file|vector)s?\b[^.?!\n]{{0,40}}\b(?:in|into)\s+{_NEWER}",
    ),
    _cue("language name", 2, _LANGUAGE),
    _cue("in C, R or Go", 2, r"\b(?:in|using|with) (?:C|R|Go)(?=[.,:;?!\n]|$| language| code| program)", flags=0),
    _cue(
        "asks for code (Chinese)",
        2,
        r"(?<!股票)(?<!基金)(?<!证券)(?<!信用)(?<!区划)(?<!邮政)代码(?!块)",
        r"(?:写|编写|实现|设计|给出)(?:[^。？！\n，]{0,16})(?:程序|函数|(?<!运)算法|爬虫|(?<!视频)(?<!直播)脚本)(?!员)",
        r"正则表达式",
    ),
    _cue("tool name", 1, _TOOL),
    _cue("how to with a tool", 1, rf"{_HOW}[^.?!\n]{{0,120}}{_TOOL}"),
    _cue("asks for code", 1, rf"{_ASK}[^.?!\n]{{0,60}}{_THING}"),
    _cue(
        "word of code",
        1,
        r"\b(?:programming|coding|(?:software|web|app|game) develop\w*|compil(?:e|ing|er)|debugg\w+|variables?|syntax|recursi\w+|"
        r"subarray|substring|linked list|binary (?:tree|array|string|search)|hash ?map|time complexity|runtime|stack trace|"
        r"backend|frontend|database schema|schema|deep learning model|neural network)\b",
    ),
    _cue(
        "statement of a coding task",
        1,
        r"\b[Gg]iven (?:an?|the|two)\b[^.?!\n]{0,40}\b(?:arrays?|strings?|matrix|linked list|binary tree|integers?|graph)\b",
        r"\bthe first line (?:of input )?contains\b",
    ),
    _cue("error message", 1, r"\b\w*(?:Error|Exception)\b(?::|\s+at\b)", r"\berror (?:code|when|message)\b", flags=0),
    _cue("inline code", 1, r"`[^`\n]{1,200}`", r"```"),
    _cue(
        "identifiers",
        1,
        r"\b[a-z]+_[a-z]+(?:_[a-z]+)*\b",
        r"\b[a-z]{2,}[A-Z][a-z]+\w*\b",
        r"\b\w+\(\)",
        r"\b\w+\.(?:py|js|ts|java|cpp|cs|rb|go|rs|php|html|css|sh|sql|jsx|tsx|json)\b",
        flags=0,
    ),
    _cue("word of code (Chinese)", 1, r"编程|程序设计|伪代码|源码|报错|编译|数据库|(?<!运)算法|前端|后端|死锁|二叉树"),
    _cue(
        "asks about code (Chinese)",
        1,
        r"(?:怎么|如何|怎样|请|帮我)[^。？！\n]{0,30}(?:函数|数据库|编程|编译|部署|bug|接口)",
    ),
)
"""What speaks for code: asks for it, shows it, or names its tools."""

# ---- mathematics ------------------------------------------------------------------------------

_NUMBER = re.compile(
    r"(?<![\w.])(?!\d+[.、)）]\D)\d[\d,.]*(?!\d*\s*(?:字|年|月))"
    r"|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty|"
    r"hundred|thousand|dozen|half|twice|thrice|third|quarter|doubles?|triples?)\b"
    r"|(?<=[^\x00-\x7f])\d[\d.]*(?!\d*\s*(?:字|年|月|[.、)）]))"
    r"|[两三四五六七八九十百千](?=\s*(?:个|只|人|米|元|天|次|厘米|千克|辆|本|名|块|岁|条|种|倍|把|张|盒|边))",
    re.IGNORECASE,
)
_QUANTITY = (
    r"(?:total|sum|average|mean|cost|price|number|amount|profit|percent\w*|ratio|difference|age|speed|distance|time|area|perimeter|"
    r"volume|length|width|height|probability|value|remainder|product|score|balance|weight)"
)
_HOW_MANY = re.compile(
    r"\bhow (?:many|much|long|far|old|fast|tall|high|big|large|heavy|likely)\b"
    rf"|\bwhat(?:['’]s| is| was| will be| would be| are)(?: [\w'’&.-]+){{0,5}}? {_QUANTITY}\b"
    rf"|\b(?:what|which) (?:percent\w*|fraction|number|day|speed|amount|distance)\b|\b(?:calculate|compute|find the {_QUANTITY})\b"
    r"|(?:多少|几(?:个|种|次|天|元|米|岁|块|只|棵|人|位|分|秒|小时|倍|本|名|间|箱|条|张|辆|道)|是几|多久|多远|多重|多长|多大|第几)"
    r"[^。；！\n]{0,30}(?:[?？]|$)"
    r"|(?:请|试|并|来)?计算",
    re.IGNORECASE,
)
_STORY_CHARS = 800
"""A word problem is short; further back there is no number of it."""
_ENDING_CHARS = 400
"""A word problem ends in its question; what long texts ask in their middle is an example or a quotation."""


def _word_problem(text: str) -> bool:
    """A question for a quantity near the end, with two numbers before or in it."""
    for asked in _HOW_MANY.finditer(text, max(0, len(text) - _ENDING_CHARS)):
        story = text[max(0, asked.start() - _STORY_CHARS) : asked.end() + 200]
        if _two_numbers(story):
            return True
    return False


def _numbers_and_question(text: str) -> bool:
    return len(text) <= _STORY_CHARS and bool(re.search("[?？]", text)) and _two_numbers(text)


def _two_numbers(text: str) -> bool:
    numbers = _NUMBER.finditer(text)
    return next(numbers, None) is not None and next(numbers, None) is not None


_FIND_ZH = r"(?:(?<![要请需追寻征恳])求|计算|(?<![了理讲见分])解(?!释|析)|算出|证明)"

MATHS = (
    _cue(
        "LaTeX",
        2,
        r"\\(?:frac|sqrt|int|sum|lim|ket|times|cdot|le|ge|leq|geq|pi|alpha|beta|theta|infty|mathbb|div)(?![A-Za-z])",
        r"\\begin\{(?:equation|align|matrix|pmatrix|cases)",
        r"\$[^$\n]{0,60}[\\^_=][^$\n]{0,60}\$",
    ),
    _cue(
        "equation",
        2,
        r"\b[a-z]\s*(?:\^\s*\{?\d|[²³]|∧\d)",
        r"\b[fgh]\s*[(（]\s*[a-z]\s*[)）]\s*[=＝]",
        r"\b\d*[xyz]\s*[-+＋*×]\s*\d*[xyz]?\s*[=＝]",
        r"\b[xyz]['′]{0,2}\s*[=＝]\s*-?\d",
        r"\b[a-z]['′]{1,2}\s*[-+]\s*[a-z]",
        r"\bd[yx]\s*/\s*d[xt]\b",
        r"[∫∑∏√∂∞∀∃]",
        r"(?<![\d,.])\d[\d,.]*\s*[×÷*+＋]\s*\d[\d,.]*\s*(?:[-+＋*×÷/]\s*\d[\d,.]*\s*){0,40}[=＝?？]",
        r"\d\s*[×÷*]\s*\d[\d,.]*\s*[×÷*+-]\s*\d",
        r"\b(?:sin|cos|tan|log|ln)\s*\d*\s*[(（]",
        r"\bsqrt\s*\(",
        r"\bAx\s*=\s*b\b",
    ),
    Cue("word problem", 2, _word_problem),
    _cue(
        "asks for mathematics",
        2,
        r"\b(?:solve|simplify|factor(?:ise|ize)?|evaluate|differentiate|integrate)\b[^.?!\n]{0,40}\b(?:equation|inequality|"
        r"expression|integral|polynomial|system of|for [a-z]\b)",
        r"\b(?:prove|proof|show) (?:that|of|the)\b[^.?!\n]{0,80}\b(?:theorem|lemma|irrational|prime|integers?|continuous|"
        r"converge\w*|even|odd|divisible|inequality|real numbers?|triangle|square root)\b",
        r"\b(?:derivative|integral|antiderivative|determinant|eigenvalues?|square root|cube root|greatest common divisor|"
        r"least common multiple|standard deviation|quadratic formula|probability (?:that|of|density)|"
        r"expected value|rational approximation|confidence interval)\b\s+(?:of|for|that|to|is)\b",
        r"\b(?:calculate|compute|find|determine|what is)\b[^.?!\n]{0,60}\b(?:probability|area of|volume of|perimeter|"
        r"circumference|hypotenuse|sum of|product of|variance|derivative|integral|roots? of|solutions? (?:of|to)|"
        r"density matrix|compound interest)\b",
        r"\bmath(?:s|ematics|ematical)? (?:problem|question|puzzle|exercise|homework)s?\b",
    ),
    _cue(
        "asks for mathematics (Chinese)",
        2,
        rf"{_FIND_ZH}[^。？！\n]{{0,30}}(?:面积|体积|周长|方程|极限|最大值|最小值|导数|积分|概率|之和|的和|公因式|行列式|原函数|交点|"
        r"奇异值|子集|基数|均值|方差|标准偏差|公约数|公倍数|长度|顶点|定理|矩阵|向量)",
        r"(?:不定|定)积分|微分方程|等差数列|等比数列|行列式|排列组合|多少种\S{0,8}(?:方案|方法|排列|可能|不同)|方案数|因式分解|"
        r"一元二次|勾股定理|泰勒展开|的导数|最小二乘|标准偏差|标准差|逆矩阵|线性代数|高数|数学题|几何题|应用题|均值近似",
        r"(?:计算|(?<![要请需追寻征恳])求解?)\s*[:：]?\s*[^\n。]{0,20}\d",
        r"已知[^。？！\n]{0,200}(?<![要请需追寻征恳])求",
        r"\d\s*[×÷*+＋]\s*\d[\d.]*.{0,12}(?:多少|结果|等于|=|＝|[?？])",
        r"\d\s*[^\s，。]{0,4}等于多少",
        r"(?:矩阵|向量|椭圆|抛物线|三角形|圆柱|多边形|超平面|数列|集合|实数|整数|自然数)[^。？！\n]{0,40}(?:证明|为什么|如何|多少|[=＝])",
        r"概率(?:是|为)?(?:多少|几)|次方[=＝]",
    ),
    _cue(
        "word of mathematics",
        1,
        r"\b(?:equation|theorem|algebra|calculus|geometry|trigonometr\w+|polynomial|matrix|matrices|integer|arithmetic|fraction|"
        r"quadratic|coefficient|exponent|probability|dice|die rolls?|coin (?:flip|toss)\w*|statistic(?:s|al)|hypothesis test\w*|permutation|combinatori\w+|"
        r"vector field|epsilon-delta|math(?:s|ematic\w*)?|multiplication|addition,? subtraction)s?\b",
        r"方程|定理|代数|几何|概率|矩阵|向量|数列|微积分|统计量|平方根",
    ),
    Cue("numbers and a question", 1, _numbers_and_question),
    _cue("arithmetic", 1, r"\d\s*[+*×÷^=]\s*\d", r"\b(?:calculate|compute|formula)\b", r"计算|算一下|利率|贴现|比例"),
)
"""What speaks for mathematics: equations, word problems, and requests to calculate or to prove."""
