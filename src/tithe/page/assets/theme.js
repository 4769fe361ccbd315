"use strict";
const theme = {
  choices: ["auto", "light", "dark"],
  // Storage is refused in some browsers for pages opened from a file; the choice then lasts as long as the page.
  read() {
    try {
      const stored = localStorage.getItem("tithe-theme");
      return this.choices.includes(stored) ? stored : "auto";
    } catch {
      return "auto";
    }
  },
  set(choice) {
    document.documentElement.dataset.theme = choice;
    try {
      localStorage.setItem("tithe-theme", choice);
    } catch {}
  },
  next() {
    const now = document.documentElement.dataset.theme;
    this.set(this.choices[(this.choices.indexOf(now) + 1) % this.choices.length]);
    return document.documentElement.dataset.theme;
  },
};
document.documentElement.dataset.theme = theme.read();
