"What tests of the explorers ask a browser"
import os
from collections.abc import Callable

SLACK = max(4, os.getloadavg()[0] / os.cpu_count())  # times of a free machine are multiplied on the clock, by how many share a core at least; processor time is not


def in_kernel(tab, expression: str) -> str:
    "What the notebook's kernel prints for an expression, through a new last cell"
    tab.locator('.jp-Cell .cm-content').last.click()
    tab.keyboard.press('Control+a')
    tab.keyboard.type(f'print("<<", {expression}, ">>")')
    tab.keyboard.press('Control+Enter')
    answer = tab.locator('.jp-OutputArea-output', has_text='<<').last
    answer.wait_for()
    return answer.inner_text().strip().removeprefix('<<').removesuffix('>>').strip()


def timed(tab, work: Callable[[], float], moves: int, bound: float) -> tuple[float, float]:
    "Milliseconds of one of `moves`: by the clock, the least of up to three times that `work` finds (a machine may be busy for a while); and of the processor, all threads of the page together"
    session, found = tab.context.new_cdp_session(tab), []
    session.send('Performance.enable', dict(timeDomain='threadTicks'))
    used = lambda: next(metric['value'] for metric in session.send('Performance.getMetrics')['metrics'] if metric['name'] == 'ProcessTime')
    before = used()
    while len(found) < 3 and min(found, default=SLACK * bound) >= SLACK * bound:
        found.append(work())
    return min(found), 1000 * (used() - before) / moves / len(found)


def hover(tab, canvas: str, moves: int = 20) -> float:
    "Median milliseconds, measured inside the page, from a pointer's move over `canvas` until the explorer has drawn (it counts in `data-draws`) and the frame is shown"
    return tab.evaluate('''async ([canvas, moves]) => {
        const node = document.querySelector(canvas), box = node.getBoundingClientRect(), times = [], draws = () => document.querySelector("[data-draws]").dataset.draws;
        const along = (i, step) => .05 + .9 * ((i * step) % moves) / moves;
        for (let i = 0; i < moves; i++) {
            const before = draws(), start = performance.now();
            const place = { clientX: box.left + box.width * along(i, 7), clientY: box.top + box.height * along(i, 3) };
            node.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, pointerId: 1, ...place }));
            while (draws() === before && performance.now() - start < 2000) await new Promise((done) => setTimeout(done, 0));
            await new Promise((done) => requestAnimationFrame(done));
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b)[Math.floor(moves / 2)];
    }''', [canvas, moves])


def check_hover(tab, canvas: str, what: str, bound: float = 150, moves: int = 20):
    "A pointer's move is answered within `bound` milliseconds, by the processor's time and, with slack, by the clock"
    clock, processor = timed(tab, lambda: hover(tab, canvas, moves), moves, bound)
    print(f'\nhover to redraw, {what}: {clock:.1f} ms by the clock, {processor:.1f} ms of the processor')
    assert processor < bound and clock < SLACK * bound
