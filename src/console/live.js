// Replaces the content of the page when the server sends a newer one, and copies ids.
'use strict';

const state = document.getElementById('live-state');
const content = document.getElementById('content');

// Changes only the nodes that differ, so that focus, selection and scroll positions stay.
function morph(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) {
    from.replaceWith(to);
    return;
  }
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
    return;
  }
  // The person may have opened or filled in these elements.
  if (from.nodeName === 'INPUT' || from.nodeName === 'SELECT') return;
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && !(from.nodeName === 'DETAILS' && name === 'open')) {
      from.removeAttribute(name);
    }
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  const [old, next] = [[...from.childNodes], [...to.childNodes]];
  next.forEach((node, index) => {
    if (index < old.length) morph(old[index], node);
    else from.append(node);
  });
  old.slice(next.length).forEach(node => node.remove());
}

function show(text, isBad) {
  state.textContent = text;
  state.className = isBad ? 'bad' : '';
}

function follow(address) {
  const events = new EventSource(address);
  events.onopen = () => show('updates by itself', false);
  events.onmessage = ({ data }) => {
    // A parsed document is inert: it runs no script and loads nothing.
    const next = new DOMParser().parseFromString(`<main>${data}</main>`, 'text/html');
    const main = document.createElement('main');
    main.append(...next.querySelector('main').childNodes);
    for (const { name, value } of content.attributes) main.setAttribute(name, value);
    morph(content, document.adoptNode(main));
  };
  events.onerror = () => {
    const isClosed = events.readyState === EventSource.CLOSED;
    show(isClosed ? 'no updates; reload the page' : 'connecting again …', true);
  };
  addEventListener('pagehide', () => events.close());
  // A page that returns from the cache of the browser has a closed stream.
  addEventListener('pageshow', shown => shown.persisted && location.reload());
}

document.addEventListener('click', async click => {
  const button = click.target.closest('button[data-copy]');
  if (!button) return;
  let said = 'Copied';
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    // Without a secure context, browsers offer no clipboard: select the text instead.
    getSelection().selectAllChildren(button.previousElementSibling);
    said = 'Selected';
  }
  button.textContent = said;
  setTimeout(() => { button.textContent = 'Copy'; }, 1500);
});

if (document.body.dataset.live) follow(document.body.dataset.live);
