// The module that anywidget is given. The modules of the front end come with it as texts, in an order in
// which each follows what it imports; they become modules of the page once for each version of them.
// Filled in by assets.py: the digest of all modules, and the modules as [name, source].
const DIGEST = "@DIGEST@";
const MODULES = [/* @MODULES@ */];

function load() {
  const loaded = (globalThis.nbflowModules ??= new Map());
  if (!loaded.has(DIGEST)) {
    const urls = new Map();
    for (const [name, source] of MODULES) {
      const text = source.replace(/((?:from|import)\s*\(?\s*)(["'])\.\/([\w-]+\.js)\2/g, (all, lead, quote, other) =>
        urls.has(other) ? `${lead}"${urls.get(other)}"` : all,
      );
      urls.set(name, URL.createObjectURL(new Blob([text], {type: "text/javascript"})));
    }
    loaded.set(DIGEST, import(urls.get("entry.js")));
  }
  return loaded.get(DIGEST);
}

export default {
  async render(context) {
    return (await load()).render(context);
  },
};
