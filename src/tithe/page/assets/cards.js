const partsOf = (label) => [label, ...label.split(/[^\w.-]+/)];
const uses = (slug) => (label) => partsOf(label).includes(slug);

/** From each card back to where its method stands in this report. */
function cards(root, rows, cases) {
  for (const place of root.querySelectorAll("[data-back]")) {
    const isOwn = uses(place.dataset.back);
    const own = rows.filter((row) => isOwn(row.method));
    const labels = distinct(own.map((row) => row.method));
    const link = (address, words) => el("a", { href: `#${new URLSearchParams(address)}` }, words);
    const wanted = labels.length === 1 ? { "results.method": labels[0] } : { "results.words": place.dataset.back };
    const links = own.length ? [link(wanted, `${count(own.length)} ${own.length === 1 ? "row" : "rows"}`)] : [];
    for (const [kind, id] of Object.entries(KINDS)) {
      const ofKind = cases.filter((one) => one.kind === kind);
      const at = ofKind.findIndex((one) => one.views.some((view) => isOwn(view.method)));
      if (at < 0) continue;
      const { method } = ofKind[at].views.find((view) => isOwn(view.method));
      links.push(link({ [`${id}.case`]: at, [`${id}.method`]: method }, `${id} view`));
    }
    place.replaceChildren(...links.flatMap((one, at) => [at ? " · " : "", one]));
    place.parentElement.hidden = !links.length;
  }
}
