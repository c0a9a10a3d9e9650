// Runs before the first paint, so that a chosen theme does not flash the other one. The only script that is no module.
try {
  const theme = JSON.parse(localStorage.getItem("fathom.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is forbidden: the system's theme it is
}
