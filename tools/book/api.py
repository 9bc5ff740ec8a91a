"Pages of the package's modules: signatures, docstrings, and tables made from the comments of parameters"
import ast
import inspect
import re
from collections.abc import Callable
from importlib import import_module
from io import BytesIO
from textwrap import dedent, fill
from tokenize import COMMENT, tokenize
from types import FunctionType

from fastcore.docments import docments

WIDTH = 100  # characters of a line of code


def parsed(thing) -> ast.FunctionDef | ast.ClassDef:
    "The definition of a function or class"
    return ast.parse(dedent(inspect.getsource(thing))).body[0]


def arguments(function: Callable) -> list[tuple[str, str, str]]:  # name with its stars, type, default; all as written
    "Arguments of a function, in order"
    args = parsed(function).args
    text = lambda node: ast.unparse(node) if node else ''
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    rows = [(a.arg, text(a.annotation), text(d)) for a, d in zip(plain, defaults)]
    rows += [(f'*{args.vararg.arg}', text(args.vararg.annotation), '')] if args.vararg else []
    rows += [(a.arg, text(a.annotation), text(d)) for a, d in zip(args.kwonlyargs, args.kw_defaults)]
    return rows + ([(f'**{args.kwarg.arg}', text(args.kwarg.annotation), '')] if args.kwarg else [])


def fields(kind: type) -> list[tuple[str, str, str, str]]:  # name, type, default, comment
    "Fields of a dataclass or named tuple"
    source = dedent(inspect.getsource(kind))
    comments = {token.start[0]: token.string.lstrip('# ') for token in tokenize(BytesIO(source.encode()).readline) if token.type == COMMENT}
    nodes = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]
    default = lambda node: re.sub(r'^field\(default_factory=(.+)\)$', r'\1()', ast.unparse(node)) if node else ''
    return [(n.target.id, ast.unparse(n.annotation), default(n.value), comments.get(n.end_lineno, '')) for n in nodes]


def signature(name: str, rows: list[tuple[str, str, str]], returns: str = '') -> str:
    "A call as one would write it, on one line where it fits"
    words = [argument + (f': {kind}' if kind else '') + (f' = {default}' if default and kind else f'={default}' if default else '') for argument, kind, default in rows]
    end = f') -> {returns}' if returns else ')'
    line = f'{name}({", ".join(words)}{end}'
    return line if len(line) <= WIDTH else f'{name}(\n{fill(", ".join(words), WIDTH, initial_indent="    ", subsequent_indent="    ", break_long_words=False)}\n{end}'


def table(rows: list[tuple[str, str, str, str]]) -> str:
    "A table of parameters; empty when nothing is said about any"
    if not any(about for *_, about in rows):
        return ''
    quoted = lambda text: f'`{text}`' if text else ''
    plain = lambda text: '`'.join(part if i % 2 else part.replace('|', r'\|') for i, part in enumerate(text.split('`')))
    cells = [[quoted(name), quoted(kind), quoted(default), plain(about)] for name, kind, default, about in rows]
    lines = [['parameter', 'type', 'default', 'meaning'], ['---'] * 4, *cells]
    return '\n'.join('| ' + ' | '.join(cell.replace('\n', ' ') for cell in line) + ' |' for line in lines)


def described(name: str, thing) -> str:
    "Signature, docstring and parameters of a function or class"
    own = thing
    if inspect.isclass(thing) and isinstance(vars(thing).get('__init__'), FunctionType) and not hasattr(thing, '__dataclass_fields__'):
        own = vars(thing)['__init__']
    returns, outcome = '', ''
    if inspect.isclass(own):
        rows = fields(own)
    else:
        comments, node = docments(own), parsed(own)
        rows = [(*row, comments.get(row[0].lstrip('*')) or '') for row in arguments(own) if row[0] not in ('self', 'cls')]
        if node.returns and own is thing:
            returns, outcome = ast.unparse(node.returns), comments.get('return') or ''
    rows += [('returns', returns, '', outcome)] if outcome else []
    said = table(rows)
    call = signature(name, [(argument, '' if said else kind, default) for argument, kind, default, _ in rows if argument != 'returns'], returns)
    return '\n\n'.join(part for part in (f'``` python\n{call}\n```', inspect.getdoc(thing) if vars(thing).get('__doc__') or not inspect.isclass(thing) else '', said) if part)


def methods(kind: type) -> list[tuple[str, Callable]]:
    "Public methods that a class defines itself, also those patched into it"
    plain = {name: inspect.unwrap(getattr(thing, '__func__', thing)) for name, thing in vars(kind).items() if not name.startswith('_')}
    return [(name, thing) for name, thing in plain.items() if isinstance(thing, FunctionType) and thing.__name__ != '<lambda>' and (thing.__module__ or '').startswith('mimrepro')]


def value(thing) -> str:
    "A few words on an exported value"
    if isinstance(thing, dict) and all(isinstance(key, str) for key in thing):
        return ', '.join(f'`{key}`' for key in list(thing)[:30]) + (', ...' if len(thing) > 30 else '')
    if isinstance(thing, (int, float, str)) and len(repr(thing)) < 60:
        return f'`{thing!r}`'
    return f'`{thing.__name__}`' if isinstance(thing, type) else f'a `{type(thing).__name__}`'


def page(name: str,               # of the module: 'mimrepro.cmae'
         where: dict[str, tuple[str, str]],  # section of each name in its notebook, as `places` finds it
         home: tuple[str, str],   # address and title of that notebook
         ) -> str:
    "The page of a module"
    module, (address, title) = import_module(name), home
    section = lambda key: '[{1}]({2}#{0})'.format(*where[key], address) if key in where else f'[{title}]({address})'
    things = {public: inspect.unwrap(getattr(module, public)) for public in module.__all__ if not public.startswith('_')}
    callables = {public: thing for public, thing in things.items() if isinstance(thing, (type, FunctionType)) and thing.__name__ == public}
    parts = [f'# {name}', f'> {inspect.getdoc(module) or ""}', f'Explained in [{title}]({address}).']
    values = [f'| `{public}` | {value(thing)} | {section(public)} |' for public, thing in things.items() if public not in callables]
    for public, thing in callables.items():
        parts += [f'## {public} {{ #{public} }}', described(public, thing), f'Explained in {section(public)}.\n{{ .place }}']
        for method, function in methods(thing) if inspect.isclass(thing) else []:
            full = f'{public}.{method}'
            parts += [f'### {full} {{ #{full} }}', described(full, function), *([f'Explained in {section(full)}.\n{{ .place }}'] if full in where else [])]
    if values:
        parts += ['## Values', '| name | what it holds | explained in |\n| --- | --- | --- |\n' + '\n'.join(line.replace('\n', ' ') for line in values)]
    return '\n\n'.join(parts) + '\n'
