const KINDS = { text: "text", image: "picture" };
const panels = { text, picture };
const rows = records(data);
const views = {};

/** The views stand in the address, as in `#text.method=snapkv&text.budget=25 %`, so that a link opens them. */
function wishes() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const wish = (id) => Object.fromEntries([...wanted].filter(([name]) => name.startsWith(`${id}.`)).map(([name, value]) => [name.slice(id.length + 1), value]));
  return Object.fromEntries(Object.keys(views).map((id) => [id, wish(id)]));
}

function remember(id) {
  return (state) => {
    const address = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
    for (const [name, value] of Object.entries(state)) {
      if (value === "") address.delete(`${id}.${name}`);
      else address.set(`${id}.${name}`, value);
    }
    try {
      history.replaceState(null, "", `#${address}`);
    } catch {
      // A sandboxed frame has no address to keep the view in; the view itself has changed.
    }
  };
}

/** Follows a link into this page: every view that it names is shown, the last of them brought into sight. */
function showWishes() {
  for (const [id, wish] of Object.entries(wishes())) {
    if (!Object.keys(wish).length) continue;
    views[id](wish);
    document.getElementById(id).scrollIntoView();
  }
}

for (const [kind, id] of Object.entries(KINDS)) {
  const cases = data.cases.filter((one) => one.kind === kind);
  if (!cases.length) continue;
  views[id] = inspector(document.getElementById(id), cases, panels[id], remember(id));
  views[id](wishes()[id] ?? {});
}
if (data.picked) picked(document.getElementById("picked"), records(data.picked.trials));
if (rows.length) {
  chart(document.getElementById("quality"), rows, data.references);
  views.results = table(document.getElementById("results"), rows);
}
if (rows.some((row) => row.by_depth?.length)) heat(document.getElementById("depth"), rows);
if (data.cards.length) cards(document.getElementById("methods"), rows, data.cases);
if (location.hash.includes(".")) showWishes();
addEventListener("hashchange", showWishes);

const toggle = document.getElementById("theme");
toggle.hidden = false;
toggle.querySelector("span").replaceChildren(document.documentElement.dataset.theme);
toggle.addEventListener("click", () => toggle.querySelector("span").replaceChildren(theme.next()));
document.documentElement.dataset.ready = "true";
