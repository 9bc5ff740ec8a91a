// The last part of a page without a kernel: a model that holds traits and tells who listens, and keeps the small ones in the page's address.

/** Traits as the page holds them; bytes are written `{"base64": ...}`. */
function readTraits() {
  const unpack = (_, value) => (value?.base64 === undefined ? value : new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer));
  return JSON.parse(document.getElementById("traits").textContent, unpack);
}

/** What anywidget's model can do, as far as a page without a kernel needs it. */
function pageModel(traits) {
  const listeners = {}, small = () => traits.state_names;
  const hash = () => "#" + small().map((name) => `${name}=${encodeURIComponent(JSON.stringify(traits[name]))}`).join("&");
  const model = {
    get: (name) => traits[name],
    set(name, value) {
      if (JSON.stringify(traits[name]) === JSON.stringify(value) && !(value instanceof DataView)) return;
      traits[name] = value;
      for (const action of [...(listeners[`change:${name}`] ?? [])]) action();
    },
    on: (event, action) => (listeners[event] ??= []).push(action),
    off: (event, action) => (listeners[event] = (listeners[event] ?? []).filter((known) => known !== action)),
    send() {}, // nobody listens
    save_changes() {
      if (model.link) history.replaceState(null, "", hash());
    },
    /** Take over what an address says, as far as it names known traits. */
    follow(address) {
      for (const [name, value] of new URLSearchParams(address.replace(/^#/, ""))) {
        if (small().includes(name)) model.set(name, JSON.parse(value));
      }
    },
  };
  if (location.protocol !== "about:") model.link = () => location.href.split("#")[0] + hash(); // inside `srcdoc` there is no address
  return model;
}

const model = pageModel(readTraits());
model.follow(location.hash);
window.addEventListener("hashchange", () => model.follow(location.hash));
await render({ model, el: document.getElementById("explorer") });
