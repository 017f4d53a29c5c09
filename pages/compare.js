// Uncovers a handle on each comparison: what lies left of it is the picture below, what lies right the one above.
for (const comparison of document.querySelectorAll(".compare")) {
  const handle = comparison.querySelector("input");
  const show = () => comparison.style.setProperty("--at", `${handle.value}%`);
  handle.addEventListener("input", show);
  handle.hidden = false;
  show();
}
