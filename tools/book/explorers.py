"Live explorers: a comment in a notebook becomes a page that needs no kernel, shown in a frame"
import re
import shlex
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from textwrap import indent

from mimrepro.cli import main

marker = re.compile(r'(?m)^<!-- *explorer: *(.+?) *-->[ \t]*$')


def file_name(words: str) -> str:  # 'masks --method localmim' -> 'masks-method-localmim.html'
    "The page of an explorer"
    return re.sub(r'[^\w.]+', '-', words.lower()).strip('-') + '.html'


def frame(words: str, to: str) -> str:
    "The Markdown that shows an explorer; `to` leads from the page to the folder of explorers"
    address, kind = f'{to}/{file_name(words)}', words.split()[0]
    return (f'<iframe class="explorer" src="{address}" title="Explorer: {kind}" loading="lazy"></iframe>\n\n'
            f'<p class="place"><a href="{address}" target="_blank">This explorer on a page of its own</a>; in a notebook: '
            f'<code>mimrepro explore {words} --out page.html</code></p>')


def framed(text: str, to: str) -> str:
    "Put a frame in the place of every marker"
    return marker.sub(lambda found: frame(found[1], to), text)


def build(words: str, path: Path) -> str:  # '' or what went wrong
    "Make the page of one explorer by the command that anybody would use"
    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main(['explore', *shlex.split(words), '--out', str(path)])
    except (Exception, SystemExit) as error:
        print(f'{type(error).__name__}: {error}', file=said)
    return '' if path.is_file() else f'`mimrepro explore {words}` made no page:\n' + indent('\n'.join(said.getvalue().strip().splitlines()[-8:]), '  ')


def build_all(texts: list[str], folder: Path) -> list[Path]:
    "Make each explorer that is named anywhere, once; time and size of their pages in the log"
    made, failures = [], []
    for words in sorted({words for text in texts for words in marker.findall(text)}):
        path, start = folder / file_name(words), time.monotonic()
        if failure := build(words, path):
            failures.append(failure)
        else:
            made.append(path)
            print(f'explorer {path.name}: {path.stat().st_size / 1e3:.0f} kB, {time.monotonic() - start:.0f} s', flush=True)
    if failures:
        raise ValueError('\n'.join(failures))
    return made
