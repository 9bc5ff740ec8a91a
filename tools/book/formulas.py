"Formulas as MathML, which browsers draw without a script"
import re
import unicodedata
from html import unescape

from latex2mathml.converter import convert

delimiters = {r'\lfloor': '⌊', r'\rfloor': '⌋', r'\lceil': '⌈', r'\rceil': '⌉', r'\|': '‖', r'\lVert': '‖', r'\rVert': '‖', r'\langle': '⟨', r'\rangle': '⟩'}


def letter(found: re.Match) -> str:
    "A letter of another alphabet as a character: browsers know no `mathvariant` but normal"
    style, character = found[1].upper(), found[2]
    case = 'CAPITAL' if character.isupper() else 'SMALL'
    for name in (f'MATHEMATICAL {style} {case} {character.upper()}', f'{style} {case} {character.upper()}'):
        try:
            return f'<mi>{unicodedata.lookup(name)}</mi>'
        except KeyError:
            continue
    return found[0]


def mathml(formula: str,  # LaTeX
           block: bool,   # on a line of its own
           ) -> str:
    "Draw a formula; what cannot be drawn is an error"
    known = re.sub(r'(\\[bB]igg?[lr]?)\s*(\\\||\\[a-zA-Z]+)', lambda found: found[1] + delimiters.get(found[2], found[2]), formula.strip())
    drawn = convert(known, display='block' if block else 'inline')
    if '\\' in drawn:
        raise ValueError(f'no MathML for {formula}: {drawn}')
    drawn = re.sub(r'<mi mathvariant="(double-struck|script|bold|fraktur)">([A-Za-z])</mi>', letter, drawn)
    return re.sub(r'<mo>(&#x0*(?:2016|2225|7C|2223|230A|230B|2308|2309|27E8|27E9);|[|‖∥∣⌊⌋⌈⌉⟨⟩])</mo>', r'<mo stretchy="false">\1</mo>', drawn)  # as in TeX: only \left and \right stretch


def drawn(html: str) -> str:
    "A page with its formulas drawn"
    def draw(found: re.Match) -> str:
        text = unescape(found[1])
        block = text.startswith(r'\[')
        return f'<div class="formula">{mathml(text[2:-2], True)}</div>' if block else mathml(text[2:-2], False)
    return re.sub(r'(?s)<(?:span|div) class="arithmatex">(.+?)</(?:span|div)>', draw, html)
