// SPDX-License-Identifier: Apache-2.0
// Brings the parts of the page together: what the server says goes from here to each of them.

import { request } from "./api.js";
import { Chat } from "./chat.js";
import { Connection } from "./connection.js";
import { byId, setText } from "./dom.js";
import { EventList } from "./events.js";
import { Experts } from "./experts.js";
import { bytes } from "./format.js";
import { askForKey, setUpKeys } from "./keys.js";

// While something happens, and while nothing does.
const BUSY_MS = 1000;
const IDLE_MS = 5000;
// Events come in groups.
const SOON_MS = 100;

const chat = new Chat();
const events = new EventList();
const connection = new Connection();
const experts = new Experts(({ status, message }) => {
  if (status === 401) askForKey("admin", message);
});

let isConnected = false;
let wasLost = false;
let timer;

function refreshIn(milliseconds) {
  clearTimeout(timer);
  timer = setTimeout(refresh, milliseconds);
}

async function refresh() {
  if (!isConnected || document.hidden) return;
  try {
    const statistics = await (await request("stats")).json();
    if (!experts.knows(Object.keys(statistics.models))) await showModels();
    show(statistics);
    const busy = ({ state, running, waiting }) =>
      running || waiting || state === "loading" || state === "draining";
    refreshIn(Object.values(statistics.models).some(busy) ? BUSY_MS : IDLE_MS);
  } catch {
    refreshIn(IDLE_MS); // the connection says what is wrong
  }
}

async function showModels() {
  const { data } = await (await request("v1/models")).json();
  experts.setModels(data);
  document.body.classList.add("knows-experts");
  chat.setModels(data);
}

function show({ models, memory, limits }) {
  experts.show(models);
  chat.setLimits(limits);
  const { measured_bytes: taken, budget_bytes: budget } = memory;
  byId("memory-meter").value = budget ? taken / budget : 0;
  setText(byId("memory-text"), `${bytes(taken)} of ${bytes(budget)}`);
}

function showConnection(state, text) {
  byId("connection").dataset.state = state;
  setText(byId("connection"), text);
}

function lost(failure, wait) {
  if (wait === null) {
    isConnected = false;
    showConnection("failed", "an API key is needed");
    askForKey("api", failure.message);
    return;
  }
  showConnection("failed", `not connected, trying again in ${wait} s`);
  if (isConnected) events.note(`${failure.message}; trying again until the server is back`);
  isConnected = false;
  wasLost = true;
}

setUpKeys(() => connection.retry());
document.addEventListener("visibilitychange", refresh);
connection.listen({
  connected() {
    isConnected = true;
    showConnection("ready", "connected");
    if (wasLost) events.note("connected again");
    wasLost = false;
    showModels().then(refresh, () => refreshIn(IDLE_MS));
  },
  event(fields) {
    events.add(fields);
    refreshIn(SOON_MS);
  },
  lost,
});
