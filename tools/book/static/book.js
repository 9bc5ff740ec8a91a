// A frame as high as its explorer; a page opened as a file may not look inside and keeps the height of the style sheet.
function fitExplorer(frame) {
  try {
    const inside = frame.contentDocument.documentElement
    const fit = () => { frame.style.height = `${Math.max(240, inside.scrollHeight)}px` }
    new frame.contentWindow.ResizeObserver(fit).observe(inside.querySelector('body'))
    fit()
  } catch {}
}
