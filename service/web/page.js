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
  const detects = Boolean(model && model.detector);
  $("labelled").hidden = detects;
  $("scored").hidden = !detects;
  $("score").value = detects ? model.detector.score_threshold : "";
  showCurl();
}

function path() {
  const query = new URLSearchParams({ model: $("model").value });
  if ($("score").value) query.set("score_threshold", $("score").value);
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

function detections(item, file) {
  const figure = element("figure");
  const picture = element("img");
  picture.src = URL.createObjectURL(file);
  picture.alt = `${file.name} with ${item.boxes.length} objects`;
  picture.addEventListener("load", () => URL.revokeObjectURL(picture.src));
  const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawing.setAttribute("viewBox", `0 0 ${item.width} ${item.height}`);
  drawing.setAttribute("aria-hidden", "true");
  for (const { box: [x1, y1, x2, y2] } of item.boxes) {
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
    drawing.append(rect);
  }
  const shown = element("div", undefined, "shown");
  shown.append(picture, drawing);
  const table = element("table");
  table.append(row([element("th", "Object"), element("th", "Score"), element("th", "x1, y1, x2, y2")]));
  for (const one of item.boxes) {
    table.append(row([one.label, percent(one.score), one.box.map((side) => side.toFixed(0)).join(", ")]));
  }
  figure.append(shown, table);
  return figure;
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
  else if (body.items) $("answer").replaceChildren(verdict(body.items[0]));
  else if (body.predictions[0].boxes) $("answer").replaceChildren(detections(body.predictions[0], file));
  else $("answer").replaceChildren(predictions(body.predictions[0]));
}

$("model").addEventListener("change", chooseModel);
$("label").addEventListener("change", showCurl);
$("file").addEventListener("change", showCurl);
$("score").addEventListener("change", showCurl);
$("form").addEventListener("submit", ask);
refresh();
