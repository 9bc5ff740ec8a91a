"What tests of the explorers ask a browser"

SLACK = 4  # times of a free machine, multiplied: those that run tests have other things to do


def in_kernel(tab, expression: str) -> str:
    "What the notebook's kernel prints for an expression, through a new last cell"
    tab.locator('.jp-Cell .cm-content').last.click()
    tab.keyboard.press('Control+a')
    tab.keyboard.type(f'print("<<", {expression}, ">>")')
    tab.keyboard.press('Control+Enter')
    answer = tab.locator('.jp-OutputArea-output', has_text='<<').last
    answer.wait_for()
    return answer.inner_text().strip().removeprefix('<<').removesuffix('>>').strip()


def quickest_median(tab, canvas: str, bound: float = SLACK * 150) -> float:
    "The least of up to three medians of `milliseconds_to_redraw`: a machine may be busy with other things for a while"
    found = []
    while len(found) < 3 and min(found, default=bound) >= bound:
        found.append(milliseconds_to_redraw(tab, canvas))
    return min(found)


def milliseconds_to_redraw(tab, canvas: str, moves: int = 20) -> float:
    "Median time, measured inside the page, from a pointer's move over `canvas` until the explorer has drawn (it counts in `data-draws`) and the frame is shown"
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
