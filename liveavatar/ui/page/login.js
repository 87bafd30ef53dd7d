// The password goes to the server once; what comes back is a cookie that scripts cannot read.
const field = document.getElementById("password");
document.getElementById("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const wrong = document.getElementById("wrong");
  try {
    const answer = await fetch("/login", { method: "POST", body: JSON.stringify({ password: field.value }) });
    if (answer.ok) return location.replace("/");
    wrong.textContent = (await answer.json()).message;
  } catch {
    wrong.textContent = "The server does not answer. Is it still running?";
  }
  field.select();
});
