// A frame as high as its explorer; a page opened as a file may not look inside and keeps the height of the style sheet.
for (const frame of document.querySelectorAll('iframe.explorer')) {
  const fit = () => {
    try {
      const inside = frame.contentDocument
      if (inside.URL === 'about:blank') return
      const grow = () => { frame.style.height = `${inside.documentElement.offsetHeight + 2}px` }
      new frame.contentWindow.ResizeObserver(grow).observe(inside.documentElement)
      grow()
    } catch {}
  }
  frame.addEventListener('load', fit)
  fit()
}
