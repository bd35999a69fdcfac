// What report.html does beyond being read: themes, sorting, tips. It is complete without.

const root = document.documentElement;
const themes = ['auto', 'light', 'dark'];
const button = document.querySelector('.theme');

function show(theme) {
  if (theme === 'auto') delete root.dataset.theme;
  else root.dataset.theme = theme;
  button.textContent = `Theme: ${theme}`;
}

// A browser may forbid a file to remember anything.
function remembered(theme) {
  try {
    if (theme) localStorage.setItem('report-theme', theme);
    return localStorage.getItem('report-theme');
  } catch {
    return theme;
  }
}

let theme = themes.includes(remembered()) ? remembered() : 'auto';
show(theme);
button.hidden = false;
button.addEventListener('click', () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  remembered(theme);
  show(theme);
});

// Numbers go by their value, words by the alphabet, what is missing to the end.
function order(a, b, sign) {
  if (a === '' || b === '') return (a === '') - (b === '');
  const difference = Number(a) - Number(b);
  if (a === b) return 0;
  return sign * (Number.isNaN(difference)
    ? a.localeCompare(b, undefined, { numeric: true })
    : difference);
}

for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, i) => {
    const click = document.createElement('button');
    click.type = 'button';
    click.textContent = head.textContent;
    head.replaceChildren(click);
    head.setAttribute('aria-sort', 'none');
    click.addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      for (const other of heads) other.setAttribute('aria-sort', 'none');
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const value = (row) => row.cells[i].dataset.value;
      body.append(
        ...[...body.rows].sort((a, b) => order(value(a), value(b), up ? 1 : -1)),
      );
    });
  });
}

// Tips appear at once, and under a finger, where those of the browser wait.
const tip = document.createElement('div');
tip.id = 'tip';
tip.hidden = true;
document.body.append(tip);
for (const title of document.querySelectorAll('svg title')) {
  title.parentElement.dataset.tip = title.textContent;
  title.remove();
}
function point(event) {
  const mark = event.target.closest?.('[data-tip]');
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - width - 6);
  const below = event.clientY + 18;
  tip.style.left = `${Math.max(6, left)}px`;
  tip.style.top = `${below + height > innerHeight ? event.clientY - height - 10 : below}px`;
}
document.addEventListener('pointermove', point);
document.addEventListener('pointerdown', point);
document.addEventListener('scroll', () => { tip.hidden = true; }, true);

// On paper, everything is open.
addEventListener('beforeprint', () => {
  for (const part of document.querySelectorAll('details')) part.open = true;
});
