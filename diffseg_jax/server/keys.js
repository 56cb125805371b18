// What the keys of the page do.

import { make } from "./panels.js";

/**
 * Calls the functions of keys, and lists the keys in an element.
 *
 * keys     rows [names, description, function or null]; a name is as in KeyboardEvent.key, in lower
 *          case, after "Ctrl+" and "Shift+"
 * context  {tools; choose(id): the digits choose classes; released(): space is no longer held}
 */
export function listenToKeys(keys, list, { tools, choose, released }) {
  const actions = new Map(keys.flatMap(([names, , action]) => names.map((each) => [each, action])));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Tab") document.body.dataset.tabbed = "yes";
    if (isForOthers(event)) return;
    if (event.code === "Space") {
      if (event.target.matches(":focus-visible:not(canvas)")) return; // presses that button
      tools.holdsSpace = true;
      document.getElementById("canvas").dataset.tool = "pan";
      event.preventDefault();
      return;
    }
    const action = shapeKey(event, tools) ?? classKey(event, choose) ?? actions.get(nameOf(event));
    if (!action) return;
    event.preventDefault();
    action();
  });
  const release = () => {
    tools.holdsSpace = false;
    released();
  };
  document.addEventListener("keyup", (event) => event.code === "Space" && release());
  window.addEventListener("blur", release);
  for (const [names, description] of keys) {
    const shown = names.map((name) => name.replace(/\b[a-z]$/, (letter) => letter.toUpperCase()));
    const boxes = shown.flatMap((name) => [make("kbd", {}, name), " "]);
    list.append(make("div", {}, make("dt", {}, ...boxes), make("dd", {}, description)));
  }
}

/** Whether a key goes to a field of text or to a dialog. */
function isForOthers(event) {
  const typing = event.target.matches("input:not([type=range], [type=checkbox]), select");
  if (typing && event.key === "Escape") event.target.blur();
  return typing || Boolean(document.querySelector("dialog[open]"));
}

const commands = (event) =>
  (event.ctrlKey || event.metaKey || event.altKey) && !event.getModifierState("AltGraph");

/** What a key does to the polygon that is not closed. */
function shapeKey(event, tools) {
  if (!tools.corners.length || commands(event)) return undefined;
  return { Enter: () => tools.closeShape(), Backspace: () => tools.removeCorner() }[event.key];
}

/** Digits choose classes, whatever the layout of the keyboard writes with them. */
function classKey(event, choose) {
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  if (!digit || commands(event) || event.getModifierState("AltGraph")) return undefined;
  return () => choose(Number(digit[1]) - 1 + (event.shiftKey ? 9 : 0));
}

function nameOf(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!commands(event)) return key;
  return event.altKey ? "" : `Ctrl+${event.shiftKey ? "Shift+" : ""}${key}`;
}
