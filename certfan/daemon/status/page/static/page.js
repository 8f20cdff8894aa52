// Keeps the page up to date: fetches it again and changes only what changed, so that focus, scroll, open details
// and a half-written filter stay. Without this file the page works as well, and reloads itself.
"use strict";
(() => {
  const root = document.documentElement;
  const every = Number(root.dataset.refresh) * 1000;
  const patience = 10000;
  let under_way = null;

  function say(text) {
    const stale = document.getElementById("stale");
    if (stale && stale.textContent !== text) stale.textContent = text;
  }

  // Makes `old` say what `fresh` says. What has an id is the same thing wherever it stands now.
  function morph(old, fresh) {
    if (old.isEqualNode(fresh)) return;
    for (const { name, value } of fresh.attributes)
      if (old.getAttribute(name) !== value && !isReaders(old, name)) old.setAttribute(name, value);
    for (const { name } of [...old.attributes])
      if (!fresh.hasAttribute(name) && !isReaders(old, name)) old.removeAttribute(name);
    const known = new Map();
    for (const child of old.children) if (child.id) known.set(child.id, child);
    let place = old.firstChild;
    for (const next of [...fresh.childNodes]) {
      const same = next.id ? known.get(next.id) : fits(place, next) ? place : null;
      if (!same) {
        old.insertBefore(document.importNode(next, true), place);
        continue;
      }
      if (same === place) place = place.nextSibling;
      else old.insertBefore(same, place);
      if (next.nodeType === Node.ELEMENT_NODE) morph(same, next);
      else if (same.nodeValue !== next.nodeValue) same.nodeValue = next.nodeValue;
    }
    while (place) {
      const gone = place;
      place = place.nextSibling;
      gone.remove();
    }
  }

  // What the reader changes is the reader's.
  function isReaders(element, attribute) {
    return (element.localName === "details" && attribute === "open") || element.id === "q";
  }

  function fits(old, next) {
    return old && old.nodeType === next.nodeType && old.nodeName === next.nodeName && !old.id;
  }

  async function refresh() {
    if (document.hidden) return;
    if (under_way) under_way.abort();
    const mine = (under_way = new AbortController());
    const timer = setTimeout(() => mine.abort("timeout"), patience);
    try {
      const answer = await fetch(location.href, { signal: mine.signal, cache: "no-store" });
      if (!answer.ok && answer.status !== 404) throw new Error(`answered ${answer.status}`);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (!fresh.getElementById("main")) throw new Error("answered something else");
      for (const selector of ["header.top", "main", "footer.foot"])
        morph(document.querySelector(selector), fresh.querySelector(selector));
      document.title = fresh.title;
      const icon = fresh.getElementById("icon").getAttribute("href");
      if (document.getElementById("icon").getAttribute("href") !== icon) document.getElementById("icon").setAttribute("href", icon);
      root.dataset.seen = String(Number(root.dataset.seen || 0) + 1);
    } catch (error) {
      if (mine.signal.aborted && mine.signal.reason !== "timeout") return; // a newer one is under way
      say(`Not up to date: certfan did not answer at ${new Date().toISOString().slice(11, 19)} UTC. Trying again.`);
    } finally {
      clearTimeout(timer);
      if (under_way === mine) under_way = null;
    }
  }

  if (every) {
    setInterval(refresh, every);
    document.addEventListener("visibilitychange", refresh);
  }

  // The filter as you type; the address changes with it, so that it can be kept.
  let typing;
  document.addEventListener("input", (event) => {
    if (event.target.id !== "q") return;
    clearTimeout(typing);
    typing = setTimeout(() => {
      const here = new URL(location.href);
      if (event.target.value) here.searchParams.set("q", event.target.value);
      else here.searchParams.delete("q");
      here.searchParams.delete("page");
      history.replaceState(null, "", here);
      refresh();
    }, 250);
  });
})();
