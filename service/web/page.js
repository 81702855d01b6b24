const $ = (id) => document.getElementById(id);
let models = [];

function element(tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
}

function row(cells) {
  const tr = element("tr");
  for (const cell of cells) tr.append(cell instanceof Node ? cell : element("td", cell));
  return tr;
}

function percent(number) {
  return `${(100 * number).toFixed(1)} %`;
}

async function refresh() {
  const ready = await fetch("readyz");
  const state = await ready.json();
  $("state").textContent = ready.ok ? "Ready" : `Not ready: ${state.detail}`;
  $("state").className = ready.ok ? "" : "bad";
  models = await (await fetch("models")).json();
  $("models").replaceChildren(...models.map((m) => row([
    `${m.name} ${m.version}`, m.task, m.labels.join(", "), `${m.input.width} x ${m.input.height}, ${m.input.resize}`,
    `focal, gamma ${m.loss.gamma}`, m.provider + (m.provider_reason ? ` (${m.provider_reason})` : ""),
  ])));
  $("model").replaceChildren(...models.map((m) => element("option", m.name)));
  chooseModel();
}

function chooseModel() {
  const model = models.find((m) => m.name === $("model").value);
  const none = element("option", "none: just classify");
  none.value = "";
  $("label").replaceChildren(none, ...(model ? model.labels : []).map((name) => element("option", name)));
  showCurl();
}

function path() {
  const query = new URLSearchParams({ model: $("model").value });
  if ($("label").value) query.set("label", $("label").value);
  return `${$("label").value ? "loss" : "predict"}?${query}`;
}

function showCurl() {
  const file = $("file").files[0];
  const type = file ? file.type : "image/jpeg";
  const name = file ? file.name.replaceAll("'", "'\\''") : "photo.jpg";
  const url = new URL(path(), document.baseURI);
  $("curl").textContent = `curl --data-binary '@${name}' -H 'Content-Type: ${type}' '${url}'`;
}

function predictions(item) {
  const table = element("table");
  table.append(row([element("th", "Class"), element("th", "Probability"), element("th", "")]));
  for (const one of item.top_k) {
    const bar = element("meter");
    bar.value = one.probability;
    bar.setAttribute("aria-label", one.label);
    const cell = element("td");
    cell.append(bar);
    table.append(row([one.label, percent(one.probability), cell]));
  }
  return table;
}

function verdict(item) {
  const box = element("div");
  box.append(element("p", item.is_issue
    ? `This label looks wrong; ${item.suggested_label} fits better.` : "Nothing speaks against this label.",
    item.is_issue ? "bad" : ""));
  box.append(element("p", `Focal loss ${item.loss.toFixed(4)}, probability of the given label ${percent(item.p_given)}, ` +
    `quality ${item.quality.toFixed(3)} (0 = surely wrong, 1 = surely right).`));
  return box;
}

async function ask(event) {
  event.preventDefault();
  const file = $("file").files[0];
  const answer = await fetch(path(), { method: "POST", body: file, headers: { "Content-Type": file.type } });
  const body = await answer.json();
  if (!answer.ok) $("answer").replaceChildren(element("p", `${body.title}: ${body.detail}`, "bad"));
  else $("answer").replaceChildren(body.items ? verdict(body.items[0]) : predictions(body.predictions[0]));
}

$("model").addEventListener("change", chooseModel);
$("label").addEventListener("change", showCurl);
$("file").addEventListener("change", showCurl);
$("form").addEventListener("submit", ask);
refresh();
