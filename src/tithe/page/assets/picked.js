/** Copies text; where the clipboard is refused, as in some frames, the text is selected so that a key copies it. */
async function copied(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return "Copied.";
  } catch {
    const selection = getSelection();
    selection.selectAllChildren(node);
    return document.execCommand("copy") ? "Copied." : "Selected: press Ctrl C or ⌘ C to copy.";
  }
}

function picked(root, trials) {
  const button = root.querySelector("[data-fill='copy']");
  if (button) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const told = await copied(root.querySelector("[data-fill='recipe']"));
      root.querySelector("[data-fill='copied']").replaceChildren(told);
    });
  }
  if (trials.length) table(root.querySelector("[data-fill='trials']"), trials);
}
