// Search in a site opened as files: browsers start no worker there, so the worker's script runs in a hidden frame.
if (location.protocol === 'file:') {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = Object.assign(document.createElement('iframe'), {hidden: true, title: 'search'})
      document.body.append(frame)
      const inside = frame.contentWindow
      this.ready = new Promise(loaded => {
        inside.postMessage = data => this.dispatchEvent(new MessageEvent('message', {data}))
        const script = Object.assign(inside.document.createElement('script'), {src: url, onload: () => loaded(inside)})
        inside.document.body.append(script)
      })
    }
    postMessage(data) {
      this.ready.then(inside => inside.dispatchEvent(new inside.MessageEvent('message', {data: inside.structuredClone(data)})))
    }
  }
  window.Worker = window.IFrameWorker
}
