"""Gold answers, responses and what the math verifier must say; the conventions of GSM8K and MATH, and where they are odd.

A comment says where math-verify 0.9 alone says something else, and what was decided.
"""

CORRECT, WRONG, UNPARSABLE = "correct", "wrong", "unparsable"

CASES: list[tuple[str, str, str]] = [
    # ---- letters alone: an order or a choice, which to math-verify is a product in any order
    ("BAC", r"\boxed{CAB}", WRONG),
    ("BAC", r"\boxed{BAC}", CORRECT),
    ("AC", r"\boxed{CA}", WRONG),
    ("no", r"\boxed{on}", WRONG),
    ("No", r"\boxed{no}", CORRECT),
    ("cat", r"\boxed{act}", WRONG),
    ("BAC", r"\boxed{B A C}", CORRECT),
    ("BAC", r"\boxed{C A B}", WRONG),
    ("B A C", r"\boxed{CAB}", WRONG),
    ("BAC", r"\boxed{(C)(A)(B)}", WRONG),
    ("BAC", r"\boxed{\mathrm{CAB}}", WRONG),
    ("ABC", r"\boxed{CBA}", WRONG),
    ("AC", r"\boxed{C \cdot A}", WRONG),
    ("AB, CD", r"\boxed{CD, AB}", CORRECT),
    ("AB, CD", r"\boxed{AB \text{ and } CD}", CORRECT),
    ("AB, CD", r"\boxed{BA, CD}", WRONG),
    ("AB, CD", r"\boxed{AB}", WRONG),
    (r"\angle ABC", r"\boxed{\angle BAC}", WRONG),
    (r"\triangle ABC", r"\boxed{ABC}", CORRECT),
    ("no", r"\boxed{(on)}", WRONG),
    ("A, C", r"\boxed{C, A}", CORRECT),
    ("xy", r"\boxed{yx}", WRONG),  # the price: two letters may be a product
    ("xy", r"\boxed{y \cdot x}", WRONG),  # the same
    (r"x \cdot y", r"\boxed{yx}", CORRECT),
    ("xy", r"\boxed{x \cdot y}", CORRECT),
    ("2xy", r"\boxed{2yx}", CORRECT),
    # ---- dates, which to math-verify are differences and quotients
    ("2023-01-02", r"\boxed{2020}", WRONG),
    ("2023-01-02", r"\boxed{2023-1-2}", CORRECT),
    ("2023-01-02", r"\boxed{2023/1/2}", CORRECT),
    ("2023-01-02", r"\boxed{2023-02-01}", WRONG),
    ("2020", r"\boxed{2023-01-02}", WRONG),
    ("2020", r"\boxed{2023 - 1 - 2}", CORRECT),  # not worked out is not wrong
    ("1/2/2023", r"\boxed{2/4/2023}", WRONG),
    ("1/2/23", r"\boxed{2/4/23}", WRONG),
    (r"\frac{1}{4046}", r"\boxed{1/2/2023}", WRONG),
    ("1/2/2023", r"\boxed{01/02/2023}", CORRECT),
    # ---- where the answer stands
    ("12", r"So we get \boxed{12}.", CORRECT),
    ("12", r"So we get $\boxed{12}$, or \fbox{13}", WRONG),
    ("12", r"\boxed{13}, no: \boxed{12}", CORRECT),
    ("12", r"\boxed{12}, no: \boxed{13}", WRONG),
    ("12", r"\boxed{\boxed{12}}", CORRECT),
    ("12", r"\boxed {12}", CORRECT),
    ("12", r"\\boxed{12}", CORRECT),
    ("12", r"the answer is \boxed{12", UNPARSABLE),
    ("12", r"\boxed{12} is wrong, so \boxed{1", CORRECT),
    ("12", r"\boxed{}", UNPARSABLE),
    ("12", "3 * 4 = <<3*4=12>>12\n#### 12", CORRECT),
    ("12", "#### Step 4: the product\n3 * 4 = 12\n#### 12", CORRECT),
    ("3*4 = <<3*4=12>>12\n#### 12", "sure! 3*4=12 so answer: 12. cheers!", CORRECT),
    ("12", "The answer is 12.", CORRECT),
    ("12", "The answer is: 12 apples, because 5 + 7 = 12.", CORRECT),
    ("12", "Final Answer: The final answer is $12$. I hope it is correct.", CORRECT),
    ("12", "**Answer:** 12", CORRECT),
    ("12", "**Answer**: **12**", CORRECT),
    ("12", "### Final Answer\n\n12", CORRECT),
    ("12", "The answer to the second question would be 12.", CORRECT),
    ("12", "The answer is that she has 12 apples left.", CORRECT),
    ("12", "The answer is 13. I mean, the answer is 12.", CORRECT),
    ("12", "The answer is 12. I hope that this answer is right.", CORRECT),
    ("12", "The answer is not 12.", UNPARSABLE),
    ("12", "答案是 12。", CORRECT),
    ("12", "因此,答案为：12 个苹果", CORRECT),
    ("12", "I think that there are 12 of them.", UNPARSABLE),
    ("12", "", UNPARSABLE),
    (r"\frac{1}{2}", "The answer is $\\frac{1}{2}$ of it.", CORRECT),
    (r"\frac{1}{2}", "The answer is:\n\\[\n\\frac{1}{2}\n\\]", CORRECT),
    ("3, 5", "The answer is $3$ and $5$.", CORRECT),
    ("17", "The answer is $12 + $5 = $17.", CORRECT),
    # ---- numbers
    ("1234", r"\boxed{1,234}", CORRECT),
    ("1,234", "#### 1234", CORRECT),
    ("10,\\!000", r"\boxed{10{,}000}", CORRECT),
    ("10000", r"\boxed{10\,000}", CORRECT),
    ("12", r"\boxed{12.00}", CORRECT),
    ("0.5", r"\boxed{.5}", CORRECT),
    ("12", r"\boxed{012}", CORRECT),
    ("-5", r"\boxed{−5}", CORRECT),
    ("12", r"\boxed{-12}", WRONG),
    ("12", r"\boxed{12.5}", WRONG),
    ("1500", r"\boxed{1.5\times 10^3}", CORRECT),
    ("1500", r"\boxed{1.5e3}", CORRECT),
    ("2500000", r"The answer is \$2.5 million.", CORRECT),
    ("12", r"\boxed{twelve}", WRONG),  # Number words are not read.
    ("120", r"\boxed{5!}", CORRECT),
    (r"0.1\overline{6}", r"\boxed{\frac{1}{6}}", CORRECT),  # math-verify alone cannot read it.
    # ---- fractions
    (r"\frac{1}{2}", r"\boxed{0.5}", CORRECT),
    ("0.5", r"\boxed{\dfrac{1}{2}}", CORRECT),
    (r"\frac{3}{4}", r"\boxed{3/4}", CORRECT),
    (r"\frac{3}{4}", r"\boxed{6/8}", CORRECT),  # As in math-verify: not reduced is not wrong.
    (r"\frac34", r"\boxed{\tfrac{3}{4}}", CORRECT),
    (r"-\frac{1}{2}", r"\boxed{\frac{-1}{2}}", CORRECT),
    (r"\frac{1}{3}", r"\boxed{0.333333}", CORRECT),
    (r"\frac{1}{3}", r"\boxed{0.33}", WRONG),
    (r"2\frac{1}{2}", r"\boxed{\frac{5}{2}}", CORRECT),
    ("2.5", r"\boxed{2 1/2}", CORRECT),  # math-verify alone: 2 * 1/2.
    # ---- percent, money, degrees, units
    ("50", r"\boxed{50\%}", CORRECT),
    (r"50\%", r"\boxed{50}", CORRECT),
    (r"50\%", r"\boxed{0.5}", CORRECT),
    (r"50\%", r"\boxed{\frac{1}{2}}", CORRECT),
    ("12.5", r"\boxed{12.5\%}", CORRECT),  # math-verify alone: only integers may lack the sign.
    (r"50\%", r"\boxed{5\%}", WRONG),
    ("18.90", r"\boxed{\$18.90}", CORRECT),
    (r"\$18.90", "The answer is $18.9.", CORRECT),
    ("70", "The answer is 70 dollars", CORRECT),
    ("30", r"\boxed{30^\circ}", CORRECT),
    (r"30^{\circ}", r"\boxed{30 \text{ degrees}}", CORRECT),
    ("5", r"\boxed{5\text{ cm}}", CORRECT),
    (r"5 \text{ cm}^2", r"\boxed{5}", CORRECT),
    (r"5\text{ cm}", r"\boxed{6\text{ cm}}", WRONG),
    (r"5\text{ cm}", r"\boxed{5\text{ m}}", CORRECT),  # Units are not compared, as in the scoring of MATH.
    ("60", r"\boxed{60 \text{ miles per hour}}", CORRECT),
    ("5", "The answer is 5 m.", CORRECT),
    ("5m", r"\boxed{5}", WRONG),  # math-verify alone takes m for metres.
    ("2s", r"\boxed{2}", WRONG),  # The same.
    # ---- roots, pi, powers, functions
    (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", CORRECT),
    (r"\frac{\sqrt{3}}{3}", r"\boxed{\frac{1}{\sqrt{3}}}", CORRECT),
    (r"2\sqrt{3}", "The answer is 2*sqrt(3)", CORRECT),
    (r"2\sqrt{3}", r"\boxed{2√3}", CORRECT),
    (r"2\sqrt{3}", r"\boxed{3\sqrt{2}}", WRONG),
    (r"10\pi", r"\boxed{10π}", CORRECT),
    (r"10\pi", r"\boxed{10\pi \approx 31.4}", CORRECT),
    (r"10\pi", r"\boxed{31.4}", WRONG),
    (r"10\pi", r"\boxed{31.415927}", CORRECT),
    ("1024", r"\boxed{2^{10}}", CORRECT),
    ("3", r"\boxed{\log_2 8}", CORRECT),
    ("10", r"\boxed{\binom{5}{2}}", CORRECT),
    ("55", r"\boxed{\sum_{n=1}^{10} n}", CORRECT),
    (r"\infty", r"\boxed{∞}", CORRECT),
    ("0", r"\boxed{\sin \pi}", CORRECT),
    ("e^{-50}", r"\boxed{e^{-60}}", WRONG),  # math-verify alone: both are 0 to its digits.
    ("-1", r"\boxed{e^{i\pi}}", WRONG),  # math-verify 0.9 is wrong: its i is a letter. Kept: nobody answers so.
    # ---- algebra, equations
    ("5", r"\boxed{x = 5}", CORRECT),
    ("x=5", r"\boxed{5}", CORRECT),
    ("x=5", r"\boxed{y=5}", WRONG),
    ("12", r"\boxed{3 \cdot 4 = 12}", CORRECT),
    ("7", r"\boxed{3 + 4}", CORRECT),  # As in math-verify: not worked out is not wrong.
    ("x^2+2x+1", r"\boxed{(x+1)^2}", CORRECT),
    ("x^2+2x+1", r"\boxed{x^2+2x-1}", WRONG),
    ("y = 2x+3", r"\boxed{2x+3}", CORRECT),
    ("y=2x+3", r"\boxed{2x-y+3=0}", CORRECT),
    ("y=2x+3", r"\boxed{2x+y+3=0}", WRONG),
    ("1+2i", r"\boxed{2i + 1}", CORRECT),
    (r"x \ne 5", r"\boxed{x \neq 5}", CORRECT),
    (r"x \ne 5", r"\boxed{x \neq 6}", WRONG),  # math-verify alone: KeyError.
    # ---- sets, tuples, intervals, matrices
    (r"\{1,2,3\}", r"\boxed{\{3, 2, 1\}}", CORRECT),
    ("1,2,3", r"\boxed{3,1,2}", CORRECT),
    ("1,2,3", r"\boxed{1,2}", WRONG),
    ("1, 2", r"\boxed{x=1 \text{ or } x=2}", CORRECT),
    (r"3 \pm \sqrt{2}", r"\boxed{3+\sqrt{2},\ 3-\sqrt{2}}", CORRECT),
    ("(1,2)", r"\boxed{\left(1, 2\right)}", CORRECT),
    ("(1,2)", r"\boxed{(2,1)}", WRONG),
    (r"\left(\frac12, 3\right)", r"\boxed{(0.5, 3)}", CORRECT),
    ("(1,2,3)", r"\boxed{(1,3,2)}", WRONG),
    ("[1,2)", r"\boxed{[1,2)}", CORRECT),
    ("[1,2)", r"\boxed{[1,2]}", WRONG),
    (r"(-\infty, 3)", r"\boxed{x < 3}", CORRECT),
    (r"[-1,1] \cup [2,3]", r"\boxed{[2,3]\cup[-1,1]}", CORRECT),
    (r"\emptyset", r"\boxed{\varnothing}", CORRECT),  # math-verify alone: a variable of that name.
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        r"\boxed{\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}}",
        CORRECT,
    ),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix} 2 \\ 1 \end{pmatrix}}", WRONG),
    # ---- texts, choices, times, bases
    (r"\text{east}", r"\boxed{East}", CORRECT),
    (r"\text{east}", "The answer is east.", CORRECT),
    (r"\text{east}", r"\boxed{\text{seat}}", WRONG),  # math-verify alone: the same letters multiplied, so equal.
    ("Monday", r"\boxed{\textbf{monday}}", CORRECT),
    (r"\text{not enough information}", r"\boxed{\text{Not enough  information.}}", CORRECT),
    (r"\text{even}", r"\boxed{12}", WRONG),
    ("yes", r"\boxed{\text{Yes}}", CORRECT),
    (r"\text{June }6", r"\boxed{June 6}", CORRECT),
    (r"\text{(A),(C)}", r"\boxed{A, C}", CORRECT),
    (r"\text{(C)}", r"\boxed{C}", CORRECT),
    ("C", r"\boxed{\text{(B)}}", WRONG),
    ("12:30", r"\boxed{12:30}", CORRECT),
    ("12:30", r"\boxed{2:05}", WRONG),  # math-verify alone: both are 2/5.
    ("3:4", r"\boxed{\frac{3}{4}}", CORRECT),
    ("2516_8", r"\boxed{2516_{8}}", CORRECT),
    ("2516_8", r"\boxed{2516}", CORRECT),  # As in math-verify: the base of the question is understood.
    ("101_2", r"\boxed{101_3}", WRONG),  # math-verify alone drops both bases.
    # ---- nothing to compare
    ("12", r"\boxed{\frac{1}{}}", UNPARSABLE),
    ("12", r"\boxed{???}", UNPARSABLE),
    ("12", r"\boxed{1 +}", UNPARSABLE),
]
