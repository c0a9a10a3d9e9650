// Runs before the first paint, so that a chosen theme does not flash the other one. The only script that is not a module.
try {
  const theme = JSON.parse(localStorage.getItem("fathom.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is forbidden: use the system's theme
}
