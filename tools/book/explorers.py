"Live explorers: a comment in a notebook becomes a page that needs no kernel, shown in a frame"
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

marker = re.compile(r'(?m)^<!-- *explorer: *(.+?) *-->[ \t]*$')
run = (sys.executable, '-c', 'import sys; from mimrepro.cli import main; sys.exit(main(sys.argv[1:]))')


def file_name(words: str) -> str:  # 'masks --method localmim' -> 'masks-method-localmim.html'
    "The page of an explorer"
    return re.sub(r'[^\w.]+', '-', words.lower()).strip('-') + '.html'


def frame(words: str, to: str) -> str:
    "The Markdown that shows an explorer; `to` leads from the page to the folder of explorers"
    address, kind = f'{to}/{file_name(words)}', words.split()[0]
    return (f'<iframe class="explorer" src="{address}" title="Explorer: {kind}" loading="lazy" onload="fitExplorer(this)"></iframe>\n\n'
            f'<p class="place"><a href="{address}" target="_blank">This explorer on a page of its own</a>; in a notebook: '
            f'<code>mimrepro explore {words} --out page.html</code></p>')


def framed(text: str, to: str) -> str:
    "Put a frame in the place of every marker"
    return marker.sub(lambda found: frame(found[1], to), text)


def build(words: str, folder: Path) -> str:  # '' or what went wrong
    "Make the page of one explorer by the command that anybody would use"
    path = folder / file_name(words)
    done = subprocess.run([*run, 'explore', *shlex.split(words), '--out', str(path)], capture_output=True, text=True)
    if done.returncode or not path.is_file():
        said = (done.stderr or done.stdout).strip().splitlines()[-8:]
        return f'`mimrepro explore {words}` made no page:\n  ' + '\n  '.join(said)
    return ''


def build_all(texts: list[str], folder: Path, workers: int = 2) -> list[Path]:
    "Make each explorer that is named anywhere, once; their pages with sizes in the log"
    wanted = sorted({words for text in texts for words in marker.findall(text)})
    with ThreadPoolExecutor(workers) as pool:
        failures = [failure for failure in pool.map(lambda words: build(words, folder), wanted) if failure]
    if failures:
        raise ValueError('\n'.join(failures))
    made = [folder / file_name(words) for words in wanted]
    for path in made:
        print(f'explorer {path.name}: {path.stat().st_size / 1e3:.0f} kB', flush=True)
    return made
