"Every link and picture of a built site leads somewhere, and no page asks the network for a part of itself"
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

parts = {('img', 'src'), ('script', 'src'), ('iframe', 'src'), ('source', 'src'), ('video', 'src'), ('audio', 'src'), ('embed', 'src'), ('object', 'data'), ('link', 'href')}
told = {'canonical', 'alternate', 'prev', 'next'}  # links in the head of a page that load nothing


class Reader(HTMLParser):
    "What a page names, links to and is made of"
    def __init__(self):
        super().__init__()
        self.anchors, self.links, self.loads = set(), set(), set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ('id', 'name') if attrs.get(key)}
        for key in ('href', 'src', 'data'):
            if attrs.get(key) and (tag == 'a' and key == 'href' or (tag, key) in parts):
                self.links.add(attrs[key])
                if (tag, key) in parts and attrs.get('rel') not in told:
                    self.loads.add(attrs[key])
        self.loads |= {found for found in re.findall(r'url\(["\']?(https?:[^)"\']+)', attrs.get('style') or '')}


@cache
def read(path: Path) -> Reader:
    "Parse a page"
    reader = Reader()
    reader.feed(path.read_text(encoding='utf-8'))
    return reader


def wrong(page: Path, link: str, site: Path) -> str:
    "What is wrong with a link of a page; '' for nothing"
    scheme, host, path, _, anchor = urlsplit(link)
    if scheme or host:
        return ''
    target = (site / unquote(path).lstrip('/') if path.startswith('/') else page.parent / unquote(path)).resolve() if path else page
    target = target / 'index.html' if target.is_dir() else target
    if site.resolve() not in target.resolve().parents or not target.is_file():
        return 'leads nowhere'
    alive = 'explorers' in target.parent.name  # its anchors are states, not places
    if anchor and target.suffix == '.html' and not alive and not anchor.startswith('__') and unquote(anchor) not in read(target).anchors:
        return 'names no place on its page'
    return ''


def faults(site: Path) -> list[str]:
    "Everything that is wrong with the links of a site"
    site, found = site.resolve(), []
    read.cache_clear()
    for page in sorted(site.rglob('*.html')):
        name, reader = page.relative_to(site), read(page)
        found += [f'{name}: {link} {fault}' for link in sorted(reader.links) if (fault := wrong(page, link, site))]
        found += [f'{name}: asks the network for {link}' for link in sorted(reader.loads) if re.match(r'(https?:)?//', link)]
    for sheet in sorted(site.rglob('*.css')):
        found += [f'{sheet.relative_to(site)}: asks the network for {link}' for link in re.findall(r'(?:url\(|@import )["\']?(https?:[^)"\']+)', sheet.read_text(encoding='utf-8'))]
    return found
