"What tests of the explorers ask a browser"


def in_kernel(tab, expression: str) -> str:
    "What the notebook's kernel prints for an expression, through a new last cell"
    tab.locator('.jp-Cell .cm-content').last.click()
    tab.keyboard.press('Control+a')
    tab.keyboard.type(f'print("<<", {expression}, ">>")')
    tab.keyboard.press('Control+Enter')
    answer = tab.locator('.jp-OutputArea-output', has_text='<<').last
    answer.wait_for()
    return answer.inner_text().strip().removeprefix('<<').removesuffix('>>').strip()


def milliseconds_to_redraw(tab, canvas: str, wait: str, moves: int = 20) -> float:
    """Median time, measured inside the page, from a pointer's move over `canvas` until the picture is drawn.
    `wait`: a JavaScript expression whose value changes with the drawing"""
    return tab.evaluate('''async ([canvas, wait, moves]) => {
        const node = document.querySelector(canvas), box = node.getBoundingClientRect(), times = [], read = () => eval(wait);
        for (let i = 0; i < moves; i++) {
            const before = read(), start = performance.now();
            const place = { clientX: box.left + box.width * (.05 + .9 * ((i * 7) % moves) / moves), clientY: box.top + box.height * (.05 + .9 * ((i * 3) % moves) / moves) };
            node.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, pointerId: 1, ...place }));
            while (read() === before && performance.now() - start < 2000) await new Promise((done) => setTimeout(done, 0));
            await new Promise((done) => requestAnimationFrame(done));
            times.push(performance.now() - start);
        }
        return times.sort((a, b) => a - b)[Math.floor(moves / 2)];
    }''', [canvas, wait, moves])
