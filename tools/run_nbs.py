"""Run notebooks by nbdev's own rules and keep their outputs: nbdev 2 has no `nbdev_test --save`.

    python tools/run_nbs.py                 every notebook
    python tools/run_nbs.py nbs/01_mae.ipynb
"""
import os, sys, time
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.process import NBProcessor


def run(path: Path):
    "Execute `path` in its own folder, leaving out what `nbdev_test` leaves out, and write the outputs back"
    cfg = get_config()
    skipped = set(cfg.tst_flags.split())
    cells = NBProcessor(path, rm_directives=False, process=True).nb.cells
    flags = {c.id: getattr(c, 'directives_', None) or {} for c in cells if c.cell_type == 'code'}

    def leave_out(cell):
        flag = flags.get(cell.id, {})
        return cell.cell_type != 'code' or bool(skipped & flag.keys()) or flag.get('eval:', [''])[0].lower() == 'false'

    nb, start, here = read_nb(path), time.time(), os.getcwd()
    for cell in nb.cells:
        if cell.cell_type == 'code' and not leave_out(cell):
            cell.outputs = []
    os.chdir(path.parent)
    sys.path.insert(0, str(cfg.config_path))
    try:
        CaptureShell(path).run_all(nb, exc_stop=True, preproc=leave_out)
    finally:
        os.chdir(here)
    write_nb(nb, path)
    print(f'{path.name}: {time.time() - start:.1f} s', flush=True)


if __name__ == '__main__':
    for name in sys.argv[1:] or sorted(Path('nbs').glob('[!.]*.ipynb')):
        run(Path(name).absolute())
