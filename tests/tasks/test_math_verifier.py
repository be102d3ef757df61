import json
import os
from pathlib import Path

import pytest

from interlock.config.tasks import TaskSettings
from interlock.records.rl import Problem
from interlock.tasks import open_task
from interlock.tasks.math_verifier import open_verifier
from interlock.tasks.sides import agree

GSM8K = Path(os.environ.get("INTERLOCK_GSM8K", "../shared/data/gsm8k"))
verify = open_verifier(TaskSettings("gsm8k", {"path": "unused"}))
verify_unmarked = open_verifier(TaskSettings("jsonl", {"path": "unused"}))


def _problem(answer: str) -> Problem:
    return Problem(id="p", messages=[], answer=answer)


@pytest.mark.parametrize(
    ("reference", "text", "reward"),
    [
        ("18", "The answer is 18.", 1.0),
        ("18", "The answer is 19.", 0.0),
        ("18", "", 0.0),
        ("18", "It costs $18.00", 1.0),
        ("70000", "a profit of $70,000.", 1.0),
        ("2,125", "2125", 1.0),
        ("-7", "so it is -7", 1.0),
        ("-7", "so it is 7", 0.0),
        # What is boxed beats what is marked, which beats the last number.
        ("18", r"\boxed{18} after 3 tries", 1.0),
        ("18", "#### 18\n(took 3 tries)", 1.0),
        ("18", "\\boxed{17}\n#### 18", 0.0),
        ("18", "#### 18 dollars.", 1.0),
        ("18", r"\boxed{18\ \text{dollars}}", 1.0),
        ("18", r"\boxed{18 pi}", 0.0),
        # Naming several answers earns nothing; naming one twice is fine.
        ("18", r"\boxed{17} \boxed{18}", 0.0),
        ("18", r"\boxed{18} \boxed{17}", 0.0),
        ("18", r"\boxed{18} so \boxed{18.0}", 1.0),
        ("18", "#### 17\n#### 18", 0.0),
        ("18", r"\boxed{17, 18}", 0.0),
        ("18", r"\boxed{17 or 18}", 0.0),
        ("18", r"\boxed{\{17, 18\}}", 0.0),
        ("18", "It is 17, 19 or 18.", 0.0),
        ("18", r"17 or 18, so \boxed{18}", 1.0),
        ("18", r"\boxed{}", 0.0),
        # Only what follows the thinking counts.
        ("18", r"<think>\boxed{17}</think>\boxed{18}", 1.0),
        ("18", r"<think>\boxed{18}</think>I do not know", 0.0),
        (r"\frac{1}{2}", r"\boxed{0.5}", 1.0),
        (r"\frac{1}{2}", r"\boxed{1/2}", 1.0),
        ("x^2+1", r"\boxed{1+x^2}", 1.0),
        ("x^2+1", r"\boxed{x^2-1}", 0.0),
        ("(1,2)", r"\boxed{(2,1)}", 0.0),
        ("Paris", r"\boxed{\text{paris}}", 1.0),
        ("Paris", r"\boxed{Pairs}", 0.0),  # the same product of letters
        (r"\frac{", "#### \\frac{", 1.0),  # no formula: compared as text
        (r"\frac{", "#### \\sqrt{", 0.0),
        ("B", r"\boxed{B}", 1.0),
        ("B", r"\boxed{A}", 0.0),
        ("18", "\x00 \ud800 18", 1.0),
        ("18", "\\boxed{\ud800}", 0.0),
    ],
)
def test_verdicts(reference: str, text: str, reward: float) -> None:
    assert verify(_problem(reference), text) == reward


# Of each kind that once went wrong, several: degrees, units, thousands, powers, fractions.
RIGHT = [
    ("6.63e-34", r"\boxed{6.63e-34}"),
    ("6.63e-34", r"\boxed{6.63\times10^{-34}}"),
    ("10^{-20}", r"\boxed{10^{-20}}"),
    ("0.0000001", r"\boxed{1e-7}"),
    ("90", r"\boxed{90^\circ}"),
    ("90", "\\boxed{90\xb0}"),
    (r"90^\circ", r"\boxed{90}"),
    ("90", r"\boxed{90 degrees}"),
    ("1000", r"\boxed{1\,000}"),
    ("1000", r"\boxed{1 000}"),
    ("1000", "\\boxed{1\u202f000}"),
    ("1000", r"\boxed{1{,}000}"),
    ("1000", r"\boxed{1,000}"),
    ("1000", "1e3"),
    ("1000", r"\boxed{1e3}"),
    ("1000", r"\boxed{1E3}"),
    ("1000", r"\boxed{1\times 10^3}"),
    ("1000", "so $10^3$"),
    ("1/2", r"so it is $\frac{1}{2}$"),
    ("1/2", r"so it is $\frac12$"),
    ("1/2", "so it is 1/2."),
    ("-1/2", r"so it is $-\frac{1}{2}$"),
    ("4", "16/4 = 4"),
    ("3/2", r"\boxed{1\frac{1}{2}}"),
    ("5", r"\boxed{5\text{ cm}}"),
    ("5", r"\boxed{5\,\mathrm{cm}}"),
    ("5", r"\boxed{5 cm}"),
    ("5", r"\boxed{5 m/s}"),
    ("5", r"\boxed{5\ \text{cm}^2}"),
    ("5 cm", r"\boxed{5}"),
    (r"5\text{ cm}", r"\boxed{5\text{ cm}}"),
    ("5000000", r"\boxed{5 million}"),
    ("50", r"\boxed{50\%}"),
    ("0.5", r"\boxed{50\%}"),
    ("50%", r"\boxed{50\%}"),
    ("50%", r"\boxed{0.5}"),
    ("2024-01-02", r"\boxed{2024-01-02}"),
    ("25!", r"\boxed{15511210043330985984000000}"),
    ("1011_2", r"\boxed{1011_2}"),
    ("1011_2", r"\boxed{1011_{2}}"),
    ("1011_2", r"\boxed{1011}"),
    (r"\frac{1}{3}", r"\boxed{0.333333}"),
    (r"\sqrt{2}", r"\boxed{1.414214}"),
    ("x=5", r"\boxed{5}"),
    ("5", r"\boxed{x=5}"),
    ("4", r"<think>a</think>\boxed{4}"),
    ("4", r"\boxed{4}<think>5"),
    ("3.0e8", r"\boxed{3\times10^8\ \text{m/s}}"),
    ("12:30", r"\boxed{12:30}"),
    ("1:2", r"\boxed{1:2}"),
    (r"2\pi", r"\boxed{2\pi}"),
    (r"2\pi", r"\boxed{6.283185}"),
    ("0", r"\boxed{0.0}"),
    ("0.1", r"\boxed{\frac{1}{10}}"),
    ("1.000", r"\boxed{1}"),
    ("12", r"\boxed{12 \text{ apples}}"),
    ("$12", r"\boxed{\$12}"),
    ("12", r"\boxed{12\$}"),
    ("12", "\\boxed{\u20ac12}"),
    ("-5", r"\boxed{-5}"),
    ("5", r"\boxed{+5}"),
    ("1,234.5", r"\boxed{1234.5}"),
    ("(1,234)", r"\boxed{(1,234)}"),
    ("{1,2}", r"\boxed{\{2,1\}}"),
    ("45", r"\boxed{45^{\circ}}"),
    ("45", r"\boxed{\angle ABC = 45^\circ}"),
    ("45", r"\boxed{45\degree}"),
    ("7", "The answer is $7$ cm."),
    ("7", "It is **7**"),
    ("7/9", "7/9 of it"),
    (".5", r"\boxed{0.5}"),
    ("0.5", r"\boxed{.5}"),
    ("0.5", "It is .5"),
    ("30", "30\xb0"),
    ("25", "= 5^2 = 25"),
    ("1000", "1 000"),
    ("1000", r"1\,000"),
    ("1000", "1\u202f000"),
    ("16", "12 16"),
    ("3", "1 2 3"),
    ("5", r"\boxed{5\text{ m}}"),
    (r"5\text{ m}", r"\boxed{5}"),
    ("25", r"\boxed{25^\circ\text{C}}"),
    ("25", "\\boxed{25\xb0C}"),
    ("5000000", r"\boxed{5\text{ million dollars}}"),
    (r"2\pi", r"\boxed{2\pi\text{ cm}}"),
    ("0.333333", r"\boxed{\frac13}"),
    ("9.5", r"\boxed{9.5\%}"),
    ("9.5%", r"\boxed{9.5}"),
    (r"95\%", r"\boxed{0.95}"),
    ("(0.1,0.2)", r"\boxed{(\frac1{10},\frac15)}"),
    (r"2\sqrt{3}", r"so it is $2\sqrt{3}$"),
    ("46", "so $12+34=46$."),
    ("46", r"so \(12+34=46\)"),
    ("46", r"so \[12+34=46\]"),
    ("9", "They pay $5, $7 and $9."),
    ("12", "They pay $5, $7, $9, $12"),
    ("7", "He pays $5 and she pays $7"),
    ("20", "He has $18 and gets $2 more, so $20 in total."),
    ("0.001", "it is $10^{-3}$"),
    ("0.001", "it is 10^{-3}"),
    ("0.001", "it is 10^-3"),
    ("6", "it is 6 cm"),
    ("6", r"it is $6\text{ cm}$"),
    ("1/2", r"half, i.e. \frac{1}{2}"),
    ("1/2", r"half, i.e. \dfrac12"),
    ("1.5", r"$1\frac{1}{2}$"),
    ("3/2", r"so 1\frac{1}{2}"),
    ("04/05/2024", r"\boxed{4/5/2024}"),
    ("1e-7", "1e-7"),
    ("0.00001", r"\boxed{0.00001}"),
    ("0.00001", r"\boxed{10^{-5}}"),
    ("101", r"\boxed{101_2}"),
    ("1,000,000", r"\boxed{1000000}"),
    ("1000000", r"\boxed{1\,000\,000}"),
    ("12", r"\boxed{x = 12}"),
    ("12", r"\boxed{12.}"),
    ("12", r"\boxed{12\text{.}}"),
    ("2:30", r"\boxed{2:30}"),
    ("Tuesday", r"\boxed{\text{Tuesday}}"),
    ("5 dollars", r"\boxed{5}"),
    ("5 dollars", r"\boxed{\$5}"),
    ("5 dollar", r"\boxed{5 dollars}"),
    (r"25\text{ cm}^2", r"\boxed{25\text{ cm}^{2}}"),
    ("60", r"\boxed{60\text{ km}/\text{h}}"),
    ("60", r"\boxed{60\,\text{km/h}}"),
    ("60", r"\boxed{60 km/h}"),
    (r"\infty", r"\boxed{\infty}"),
    ("i", r"\boxed{i}"),
    ("1+i", r"\boxed{1+i}"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\boxed{\begin{pmatrix}1&2\end{pmatrix}}"),
    ("[0,1]", r"\boxed{[0,1]}"),
    ("5!", r"\boxed{120}"),
    ("e^{-50}", r"\boxed{1.928750\times10^{-22}}"),
    ("6.022e23", r"\boxed{6.022\times 10^{23}}"),
    ("100", r"\boxed{1.0e2}"),
    ("1000", r"\boxed{1'000}"),
    ("1234567", r"\boxed{1~234~567}"),
    ("1/2", r"\boxed{\nicefrac{1}{2}}"),
    ("1/2", "so it is \xbd"),
    ("½", r"\boxed{\frac12}"),
    ("7/2", "\\boxed{3\xbd}"),
    ("100", "\\boxed{10\xb2}"),
    ("0.001", "so 10\u207b\xb3"),
    ("300", "\\boxed{3\xd710\xb2}"),
    ("x^2", "\\boxed{x\xb2}"),
    (r"\sqrt{2}", "\\boxed{\u221a2}"),
    ("7", "\\boxed{\uff17}"),
    ("1/3", "\\boxed{1\u20443}"),
    ("6x", "\\boxed{2\xb73x}"),
    ("60", r"\boxed{\ang{60}}"),
    ("5 cm", r"\boxed{\SI{5}{cm}}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    (r"\begin{pmatrix}1\\ 2\end{pmatrix}", r"\boxed{\begin{bmatrix}1 \\ 2\end{bmatrix}}"),
    (r"\begin{pmatrix}1\\\,2\end{pmatrix}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    ("1234567", r"\boxed{1.234.567}"),
    ("1234567.89", r"\boxed{1.234.567,89}"),
    ("1234.50", r"\boxed{1.234,50}"),
    ("3.14", r"\boxed{3{,}14}"),
    ("1000000", r"\boxed{1_000_000}"),
    ("1000000", "\\boxed{1\u2019000\u2019000}"),
    ("1000000", "It is 1.000.000"),
    ("7/3", r"\boxed{2 1/3}"),
    ("7/3", r"\boxed{2\ 1/3}"),
    ("7/3", "It is 2 1/3."),
    ("5/2", r"\boxed{2 \frac12}"),
    ("1/3", r"\boxed{0.\overline{3}}"),
    ("1/3", r"\boxed{0.\bar3}"),
    ("1/3", r"\boxed{0.\dot{3}}"),
    ("1/6", r"\boxed{0.1666\ldots}"),
    ("1/3", "\\boxed{0.333\u2026}"),
    (r"0.\overline{3}", r"\boxed{\frac13}"),
    ("12.34", r"\boxed{\frac{1234}{100}}"),
    (r"0.1\overline{27}", r"\boxed{\frac{7}{55}}"),
    ("5", r"\boxed{\bf 5}"),
    ("5", r"\boxed{\textcolor{red}{5}}"),
    ("5", r"\boxed{\color{red}5}"),
    ("5", r"\boxed{\underline{5}}"),
    ("5", r"\boxed{\large 5}"),
    ("5", r"\boxed{5\ }"),
    ("5", r"\boxed{5;}"),
    ("5", r"\boxed{n = 5 \text{ cm}}"),
    ("5 cm", r"\boxed{n = 5 cm}"),
    ("5 cm", r"\boxed{5 centimeters}"),
    ("5 cm", r"\boxed{5\text{ centimetres}}"),
    (r"5\text{ m}", r"\boxed{5 meters}"),
    ("5 square meters", r"\boxed{5\text{ m}^2}"),
    (r"5\text{ m}^2", r"\boxed{5\text{ sq. m}}"),
    (r"5\text{ m}^3", r"\boxed{5 cubic meters}"),
    (r"5\text{ m}^3", r"\boxed{5 meters cubed}"),
    ("5 hours", r"\boxed{5\text{ hrs}}"),
    ("60 km/h", r"\boxed{60 kilometers per hour}"),
    ("60 miles per hour", r"\boxed{60\text{ mph}}"),
    ("6 feet", r"\boxed{6 ft}"),
    ("\xa35", r"\boxed{5}"),
    ("$5", r"\boxed{5 dollars}"),
    ("$5", r"\boxed{\$5.00}"),
    ("-$5", r"\boxed{-5}"),
    ("$5$", r"\boxed{5}"),
    ("5", "\\boxed{5\u20ac}"),
    ("5", "\\boxed{\xa55}"),
    ("\u20ac5", r"\boxed{5 euros}"),
    (r"\emptyset", r"\boxed{\varnothing}"),
    (r"\emptyset", r"\boxed{\{\}}"),
    ("1.5e-3", r"\boxed{1.5 x 10^{-3}}"),
    ("-5", "\\boxed{\u20135}"),
    ("-5", "It is \u20135"),
    ("-5", "\\boxed{\ufe635}"),
    ("-1/2", "\\boxed{\u2013\\frac12}"),
    ("7", "\\boxed{\u0667}"),
    ("7", "It is \u096d"),
    ("7.5", "\\boxed{\u0667.\u0665}"),
]
WRONG = [
    ("6.63e-34", r"\boxed{1.6e-19}"),
    ("10^{-20}", r"\boxed{10^{-21}}"),
    ("0.0000001", r"\boxed{0.0000002}"),
    ("2", r"so it is $\frac{1}{2}$"),
    ("5 cm", r"\boxed{5\text{ m}}"),
    ("5", r"\boxed{5x}"),
    ("5", r"\boxed{5 million}"),
    ("2024-01-02", r"\boxed{2024-02-01}"),
    ("25!", r"\boxed{15511210043330985984000001}"),
    ("15511210043330985984000000", r"\boxed{15511210043330985984000001}"),
    ("1011_2", r"\boxed{1010_2}"),
    ("17_8", r"\boxed{17_9}"),
    (r"\frac{1}{3}", r"\boxed{0.3333}"),
    (r"\sqrt{2}\cdot 10^{-20}", r"\boxed{\sqrt{3}\cdot 10^{-20}}"),
    ("(10^{-20},2)", r"\boxed{(10^{-21},2)}"),
    ("4", r"<think>\boxed{4}"),
    ("2", "2e5"),
    ("1000000", r"\boxed{999999.5}"),
    ("12:30", r"\boxed{12:31}"),
    ("1e-400", r"\boxed{2e-400}"),
    ("0", r"\boxed{1e-9}"),
    ("10^{100}+1", r"\boxed{10^{100}}"),
    (r"\frac{1}{10^{20}}", r"\boxed{0}"),
    ("January 5", r"\boxed{\text{January 6}}"),
    ("5 January", r"\boxed{6 January}"),
    ("3.14", r"\boxed{\pi}"),
    ("1000", r"\boxed{1.000}"),
    (r"\frac{\pi}{4}", r"\boxed{45^\circ}"),
    ("3t", r"\boxed{3}"),
    ("3", r"\boxed{3t}"),
    ("3", r"\boxed{3m}"),
    ("x^2+5", r"\boxed{x^2+5m}"),
    ("x^2+5", r"\boxed{x^2+5\text{m}}"),
    ("5", r"\boxed{5\text{ million}}"),
    ("2", r"\boxed{2\mathrm{e}}"),
    (r"2\pi", r"\boxed{2\pi r}"),
    (r"2\pi hr", r"\boxed{2\pi}"),
    ("0.12345678901234567", r"\boxed{0.12345678901234568}"),
    ("12345678901234567.5", r"\boxed{12345678901234567.25}"),
    (r"\frac{1}{3}", r"\boxed{0.333334}"),
    ("3", r"so it is $2\sqrt{3}$"),
    ("-3", "it is $10^{-3}$"),
    ("04/05/2024", r"\boxed{05/04/2024}"),
    ("4", r"<think>so</think><think> \boxed{4}"),
    ("4", r"<THINK>\boxed{4}"),
    ("4", r"<thinking>\boxed{4}"),
    ("4", r"\boxed{4}</think>"),
    ("101_2", r"\boxed{101_3}"),
    ("(1,234)", r"\boxed{1234}"),
    ("5 dollars", r"\boxed{5 cents}"),
    (r"25\text{ cm}^2", r"\boxed{25\text{ cm}}"),
    ("inf", r"\boxed{\infty}"),
    ("1+i", r"\boxed{1-i}"),
    (r"\begin{pmatrix}10^{-20}&2\end{pmatrix}", r"\boxed{\begin{pmatrix}10^{-21}&2\end{pmatrix}}"),
    ("x>10^{-20}", r"\boxed{x>10^{-21}}"),
    ("170!", r"\boxed{170!+1}"),
    (r"\frac{2}{3}", r"\boxed{0.667}"),
    ("e^{-50}", r"\boxed{e^{-51}}"),
    ("6.022e23", r"\boxed{6.023\times 10^{23}}"),
    ("2", "so it is \xbd"),
    ("2", "\\boxed{10\xb2}"),
    ("102", "\\boxed{10\xb2}"),
    ("5 cm", r"\boxed{\SI{5}{m}}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix}2\\1\end{pmatrix}}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{pmatrix}1 & 2\end{pmatrix}}"),
    ("1234", r"\boxed{1.234}"),
    ("1.234", r"\boxed{1,234}"),
    ("0.5", r"\boxed{0,5}"),  # a list of two, to most
    ("1/3", r"\boxed{0.\overline{4}}"),
    ("0.3", r"\boxed{0.\overline{3}}"),
    ("7/3", r"\boxed{21/3}"),
    ("2/3", "It is 2 1/3."),
    ("$5", r"\boxed{5 cents}"),
    ("$5", "\\boxed{\u20ac5}"),
    ("5 yuan", r"\boxed{5 yen}"),
    ("\xa35", r"\boxed{\$5}"),
    ("5%", r"\boxed{5\text{ kg}}"),
    ("5 cm", r"\boxed{5\%}"),
    ("5 cm", r"\boxed{5 meters}"),
    ("5 square meters", r"\boxed{5 meters}"),
    ("5 pounds", r"\boxed{5 ounces}"),
    ("60 km/h", r"\boxed{60 miles per hour}"),
    (r"\emptyset", r"\boxed{0}"),
    # An order that is not said.
    ("(1,2)", r"\boxed{\{1,2\}}"),
    (r"\left(1,2\right)", r"\boxed{\left\{1, 2\right\}}"),
    ("(x,y)=(1,2)", r"\boxed{\lbrace 1,2\rbrace}"),
    ("(1,2,3)", r"\boxed{S=\{1,2,3\}}"),
    # Equations whose sides differ.
    ("5", r"\boxed{6=5}"),
    ("5", r"\boxed{7=6=5}"),
    ("5", r"\boxed{x=6=5}"),
    ("x=5", r"\boxed{x=6=5}"),
    ("5", r"\boxed{2+4=5}"),
    ("5", r"\boxed{5=2+4}"),
    ("5", r"\boxed{\frac{12}{2}=5}"),
    ("5", "so $6=5$"),
    ("2,4", r"\boxed{1+1=2, 2+3=4}"),
    ("0.5", r"\boxed{2/3=0.5}"),
    ("5", r"\boxed{\(6\) or \(5\)}"),
    ("5", r"\(6\) or \(5\)"),
]


# Equations whose sides agree, or of which not both can be told.
EQUATIONS = [
    *(("5", each) for each in ("x=5", "2+3=5", "5 = 2+3", "5.0=5", "x=5.00", "a=b=5", "5=5")),
    *(("5", each) for each in (r"x=\frac{10}{2}=5", r"\sqrt{25}=5", "|-5|=5", "f(2)=5", "x+1=5")),
    *(("0.67", "2/3=0.67"), ("0.66", "2/3=0.66"), ("33.3", "100/3 = 33.3"), ("3.14", r"\pi=3.14")),
    *(("2.5", "2 1/2 = 2.5"), ("1200", "1,000 + 200 = 1,200"), ("13", "1101_2 = 13")),
    *(("0.5", r"50\% = 0.5"), ("1200", r"\$1000 + \$200 = \$1200"), ("2,4", "1+1=2, 2+2=4")),
    *(("(1,2)", "x=1, y=2"), ("(1,2)", "(x,y)=(1,2)"), (r"\{1,2\}", "x=1, x=2"), ("1=2", "1=2")),
    *(("(1,2)", "1,2"), (r"\{1,2\}", "1,2"), (r"\{1,2\}", "(1,2)"), ("1,2", r"\{2,1\}")),
]


@pytest.mark.parametrize(("reference", "said"), EQUATIONS)
def test_what_agrees_with_itself_is_right(reference: str, said: str) -> None:
    assert verify_unmarked(_problem(reference), rf"\boxed{{{said}}}")


@pytest.mark.parametrize("side", ["-" * 150, "(" * 90, "1/0+", "9" * 300 + "+", "2(3)", "..."])
def test_a_side_that_is_no_arithmetic_is_left_alone(side: str) -> None:
    assert agree(f"{side}5=5")


# To a comparison by shares of the larger, infinity is as good as any number.
BOUNDLESS = [
    *(r"\infty", r"-\infty", "1/0", r"\frac{1}{0}", r"\tan(\pi/2)", r"\log 0", r"\{\infty\}"),
    *(r"\infty\%", r"e^{\infty}", "inf", "nan", r"(-\infty,\infty)", r"\mathbb{R}"),
]


@pytest.mark.parametrize("answer", BOUNDLESS)
@pytest.mark.parametrize(
    "reference", ["5", "0", r"\sqrt{2}", r"\pi", "50%", "10^{-20}", "(1,2)", r"(1,\infty)", "x>3"]
)
def test_infinity_is_no_number(reference: str, answer: str) -> None:
    assert not verify_unmarked(_problem(reference), rf"\boxed{{{answer}}}")


@pytest.mark.parametrize("other", [r"-\infty", "0", "10^{30}", "1/0"])
def test_infinity_is_itself_alone(other: str) -> None:
    assert verify_unmarked(_problem(r"\infty"), r"\boxed{\infty}")
    assert verify_unmarked(_problem(r"(-\infty,3]"), r"\boxed{(-\infty, 3]}")
    assert not verify_unmarked(_problem(r"\infty"), rf"\boxed{{{other}}}")


@pytest.mark.parametrize(("reference", "text"), RIGHT)
def test_the_right_value_is_right_in_any_form(reference: str, text: str) -> None:
    assert verify_unmarked(_problem(reference), text)


@pytest.mark.parametrize(("reference", "text"), WRONG)
def test_another_value_is_wrong_however_close(reference: str, text: str) -> None:
    assert not verify_unmarked(_problem(reference), text)


def test_the_mark_counts_only_where_the_task_has_one() -> None:
    assert verify(_problem("18"), "#### 18\n3 tries") == 1.0
    assert verify_unmarked(_problem("18"), "#### 18\n3 tries") == 0.0


@pytest.mark.skipif(not GSM8K.is_dir(), reason="no GSM8K data; set INTERLOCK_GSM8K")
def test_gsm8k_solutions_score_one_and_wrong_numbers_zero() -> None:
    solutions = {}
    for line in (GSM8K / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        solutions[row["question"]] = row["answer"]
    source = open_task(TaskSettings("gsm8k", {"path": str(GSM8K)}, held_out=200))
    for problem in source.held_out(200):
        solution = solutions[problem.messages[-1]["content"]]
        assert verify(problem, solution) == 1.0
        assert verify(problem, solution.replace("####", "So it is ")) == 1.0
        assert verify(problem, f"{solution}7") == 0.0
