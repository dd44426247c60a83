// One answer on the page: its canvas as it fills, the same replayed, and what else might have stood at each place.
//
// In:  `given`, what is known of the answer (Answer.state in page_answers.py), and later `more(news)` with what is new.
// Out: the event `ready`, once it can be told more; what is called before would be lost.
//
// Tokens are put on the screen as text only, so none of them can act. The canvas is drawn by hand, not by Vue: at
// 15 looks a second only the places that changed are touched.

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export default {
  template: `
    <div class="uc">
      <div ref="text" class="uc-text" role="group" lang="" dir="auto" :aria-label="words.canvas"></div>
      <div ref="tip" class="uc-tip" role="region" aria-live="polite" hidden></div>
      <div ref="bar" class="uc-bar" hidden>
        <button ref="play" type="button" class="uc-button uc-play" :aria-label="words.play">
          <i class="material-icons" aria-hidden="true">play_arrow</i></button>
        <button ref="back" type="button" class="uc-button" :aria-label="words.one_back" :title="words.one_back">
          <i class="material-icons" aria-hidden="true">chevron_left</i></button>
        <input ref="at" type="range" min="0" step="1" value="0" :aria-label="words.step">
        <button ref="next" type="button" class="uc-button" :aria-label="words.one_on" :title="words.one_on">
          <i class="material-icons" aria-hidden="true">chevron_right</i></button>
      </div>
      <div ref="stats" class="uc-stats"></div>
      <div ref="live" class="uc-live" aria-live="polite"></div>
    </div>`,
  props: { given: Object, words: Object, levels: Array },

  created() {
    this.say = Vue.toRaw(this.words);
    this.all = { places: [], start: 0, span: null, steps: [], end: null };
    this.tokens = {};
    this.special = new Set();
    this.cells = [];
    this.shown = -1; // steps that are played into the cells
    this.follows = true; // shows the newest step
    this.timer = null;
    this.picked = null;
    this.focused = 0;
    this.from = 0; // places before it are the question, which stands above
    this.plain = false;
  },

  mounted() {
    const { text, play, back, next, at, tip } = this.$refs;
    play.addEventListener("click", () => this.toggle());
    back.addEventListener("click", () => this.jump(this.shown - 1));
    next.addEventListener("click", () => this.jump(this.shown + 1));
    at.addEventListener("input", () => this.jump(Number(at.value)));
    text.addEventListener("click", (event) => this.pick(this.place_of(event)));
    text.addEventListener("keydown", (event) => this.key(event));
    this.away = (event) => {
      if (this.picked !== null && !text.contains(event.target) && !tip.contains(event.target)) this.pick(null);
    };
    document.addEventListener("click", this.away);
    const given = JSON.parse(JSON.stringify(this.given)); // without Vue's proxies
    this.plain = given.causal;
    this.$el.classList.toggle("uc-plain", this.plain);
    this.more(given);
    if (!given.end) this.$refs.live.textContent = this.say.writing;
    this.$emit("ready");
  },
  unmounted() {
    document.removeEventListener("click", this.away);
    clearTimeout(this.timer);
  },

  methods: {
    // What is new of the answer; told by the server.
    more(news) {
      for (const name of ["places", "start", "span", "end"]) if (news[name] !== undefined) this.all[name] = news[name];
      if (news.places) this.shown = -1; // the canvas is there only now
      Object.assign(this.tokens, news.tokens || {});
      for (const id of news.special || []) this.special.add(id);
      this.all.steps.push(...(news.steps || []));
      if (news.text !== undefined && this.plain) this.$refs.text.append(news.text);
      if (this.given.kind !== "infill") this.from = this.all.start;
      if (news.end) {
        this.$refs.live.textContent = "";
        this.$el.classList.add("uc-ended");
      }
      if (this.plain) return this.tell();
      const last = this.all.steps.length;
      this.$refs.at.max = last;
      this.$refs.bar.hidden = !last;
      if (this.follows || this.shown < 0) this.show(last);
      else this.tell();
      if (news.end) this.$refs.live.textContent = this.say.done.replace("{text}", () => this.read());
    },

    // -------------------------------------------------------------------------------------------------------------
    // Playing

    cell(id, text, given) {
      return { id, text, given, step: 0, frame: 0, sure: null, also: null, before: [] };
    },
    put(place, id, text, step, frame, sure) {
      const c = this.cells[place];
      if (c.id !== null) c.before.push([c.step, c.id, c.sure]);
      Object.assign(c, { id, text, step, frame, sure, also: null });
    },
    play_entry(entry, frame) {
      for (const [place, more] of entry.grown)
        this.cells.splice(place, 0, ...Array.from({ length: more }, () => this.cell(null, null, false)));
      for (const place of entry.reopened) this.put(place, null, null, 0, frame, null);
      for (const [place, id, text, sure] of entry.written) this.put(place, id, text, entry.step, frame, sure);
      for (const [place, some] of entry.alternatives || []) this.cells[place].also = some;
      for (const [place, text] of entry.respelt) this.cells[place].text = text;
    },
    go_to(frame) {
      if (this.shown < 0 || frame < this.shown) {
        this.cells = this.all.places.map((p) => this.cell(...p));
        this.shown = 0;
      }
      while (this.shown < frame) this.play_entry(this.all.steps[this.shown++], this.shown);
    },
    show(frame) {
      const last = this.all.steps.length;
      frame = Math.max(0, Math.min(last, frame));
      this.follows = frame === last;
      this.go_to(frame);
      this.draw();
    },
    jump(frame) {
      this.pause();
      this.show(frame);
    },
    pause() {
      clearTimeout(this.timer);
      this.timer = null;
      this.face("play_arrow", this.say.play);
    },
    play() {
      const last = this.all.steps.length;
      clearTimeout(this.timer);
      if (this.shown >= last) this.show(0);
      this.face("pause", this.say.pause);
      const wait = Math.max(70, Math.min(450, 12000 / Math.max(1, last)));
      const tick = () => {
        this.show(this.shown + 1);
        if (this.shown >= this.all.steps.length) this.pause();
        else this.timer = setTimeout(tick, wait);
      };
      this.timer = setTimeout(tick, wait);
    },
    toggle() {
      if (this.timer) this.pause();
      else this.play();
    },
    restart() {
      this.jump(0);
      this.play();
    },
    face(icon, words) {
      this.$refs.play.firstElementChild.textContent = icon;
      this.$refs.play.setAttribute("aria-label", words);
      this.$refs.play.title = words;
    },

    // -------------------------------------------------------------------------------------------------------------
    // Drawing

    level(sure) {
      const found = this.levels.findIndex((below) => sure < below);
      return found < 0 ? this.levels.length - 1 : found;
    },
    look(i, span) {
      const c = this.cells[i];
      const before = this.cells[i - 1];
      const at_work = span && i >= span[0] && i <= span[1];
      if (c.id === null)
        return ["", "t mask" + (this.shown && c.frame === this.shown ? " back" : at_work ? " work" : "")];
      if (c.text === null) return ["", "t mask part"];
      const ended = this.all.end && this.shown === this.all.steps.length;
      const fresh = c.frame === this.shown && this.shown && !c.given && !ended ? " fresh" : "";
      const sure = c.given || c.sure === null ? "" : " c" + this.level(c.sure);
      if (this.special.has(c.id)) {
        const again = before && before.id === c.id && !c.given;
        const filled = c.sure === null && again ? " filled" : "";
        return [again ? "·" : c.text, "t special" + sure + (again ? " again" : "") + filled + (sure ? fresh : "")];
      }
      const line = /^[\r\n]+$/.test(c.text) && !c.given ? " line" : "";
      return [c.text, "t " + (c.given ? "given" : "answer" + sure + fresh + (c.before.length ? " revised" : "") + line)];
    },
    draw() {
      const text = this.$refs.text;
      const span = (this.shown ? this.all.steps[this.shown - 1] : this.all).span;
      const count = Math.max(0, this.cells.length - this.from);
      for (let i = text.childElementCount; i < count; i++) {
        const made = document.createElement("span");
        made.tabIndex = i ? -1 : 0;
        made.setAttribute("role", "button");
        text.append(made);
      }
      while (text.childElementCount > count) text.lastElementChild.remove();
      for (let i = 0; i < count; i++) {
        const [words, kind] = this.look(i + this.from, span);
        const s = text.children[i];
        if (s.textContent !== words) s.textContent = words;
        if (s.className !== kind) {
          s.className = kind;
          s.removeAttribute("aria-label");
        }
      }
      if (this.picked !== null) this.pick(this.picked);
      this.tell();
    },
    tell() {
      const stats = this.$refs.stats;
      const last = this.all.steps.length;
      const end = this.all.end;
      const whole = end && (this.plain || this.shown === last);
      const entry = this.shown > 0 ? this.all.steps[this.shown - 1] : { step: 0, passes: 0 };
      const final = last ? this.all.steps[last - 1].step : 0;
      const free = this.cells.filter((c) => !c.given);
      const written = free.filter((c) => c.id !== null && c.sure !== null).length;
      const tokens = whole ? end.tokens : written;
      const passes = whole ? end.passes : entry.passes;
      stats.replaceChildren();
      const add = (value, what) => {
        const part = document.createElement("span");
        const bold = document.createElement("b");
        bold.textContent = value;
        part.append(bold, " " + what);
        stats.append(part);
      };
      if (!this.plain && !this.cells.length) {
        stats.textContent = this.say.waiting;
        return;
      }
      if (this.plain && !end) return;
      add(whole || this.plain ? tokens : tokens + " / " + free.length, this.say.stat_tokens);
      add(passes, this.say.stat_passes);
      add(passes ? (tokens / passes).toFixed(2) : "–", this.say.stat_per_pass);
      if (whole) add(end.seconds.toFixed(end.seconds < 10 ? 2 : 1), this.say.stat_seconds);
      const rest = document.createElement("span");
      rest.className = "uc-rest";
      // a gap has its length and no end of its own
      const ended = this.given.kind === "infill" && end && end.reason === "length";
      if (whole) rest.textContent = (!ended && this.say["reason_" + end.reason]) || "";
      else rest.textContent = this.say.step_of.replace("{step}", entry.step).replace("{last}", final);
      stats.append(rest);
      const { at, back, next } = this.$refs;
      at.value = Math.max(0, this.shown);
      at.setAttribute("aria-valuetext", this.say.step_of.replace("{step}", entry.step).replace("{last}", final));
      at.style.setProperty("--part", (last ? (100 * this.shown) / last : 0) + "%");
      back.disabled = this.shown <= 0;
      next.disabled = this.shown >= last;
    },
    read() {
      const seen = this.cells.slice(this.from).filter((c) => c.text && !this.special.has(c.id));
      return seen.map((c) => c.text).join("").trim();
    },

    // -------------------------------------------------------------------------------------------------------------
    // One token

    place_of(event) {
      const found = event.target.closest(".t");
      if (!found || found.parentElement !== this.$refs.text) return null;
      return [...this.$refs.text.children].indexOf(found) + this.from;
    },
    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || this.plain) return;
      const place = this.place_of(event);
      if (place === null) return;
      const last = this.cells.length - 1;
      const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: this.from, End: last }[event.key];
      if (to !== undefined) this.focus(Math.max(this.from, Math.min(last, to)));
      else if (event.key === "Enter" || event.key === " ") this.pick(place === this.picked ? null : place);
      else if (event.key === "Escape" && this.picked !== null) this.pick(null);
      else return;
      event.preventDefault();
    },
    focus(place) {
      const spans = this.$refs.text.children;
      const old = spans[this.focused - this.from] || spans[0];
      if (old) old.tabIndex = -1;
      spans[0].tabIndex = -1;
      this.focused = place;
      const s = spans[place - this.from];
      s.tabIndex = 0;
      s.setAttribute("aria-label", this.about(this.cells[place], place).join(", "));
      s.focus();
      if (this.picked !== null) this.pick(place);
    },
    named(id) {
      return JSON.stringify(this.tokens[id] ?? "?");
    },
    about(c, place) {
      const told = [c.id === null ? this.say.is_open : this.named(c.id), this.say.place.replace("{place}", place)];
      if (c.given) told.push(this.say.is_given);
      else if (c.id !== null && c.sure === null) told.push(this.say.is_filled);
      else if (c.id !== null) {
        told.push(this.say.written_at.replace("{step}", c.step));
        told.push(this.say.confidence.replace("{p}", c.sure.toFixed(3)));
      }
      if (c.id !== null && (c.text === null || c.text === "")) told.push(this.say.is_part);
      return told;
    },
    pick(place) {
      const { tip, text } = this.$refs;
      for (const old of text.querySelectorAll(".picked")) old.classList.remove("picked");
      const c = place === null || this.plain ? null : this.cells[place];
      this.picked = c ? place : null;
      tip.hidden = !c;
      if (!c) return;
      const s = text.children[place - this.from];
      s.classList.add("picked");
      tip.replaceChildren();
      const add = (parent, name, words, kind) => {
        const made = document.createElement(name);
        if (words !== undefined) made.textContent = words;
        if (kind) made.className = kind;
        parent.append(made);
        return made;
      };
      const [name, ...rest] = this.about(c, place);
      add(tip, "div", name, "uc-name");
      add(tip, "div", rest.join(" · "), "uc-about");
      for (const [step, id, sure] of c.before) {
        const p = sure === null ? "" : ", " + this.say.confidence.replace("{p}", sure.toFixed(3));
        add(tip, "div", this.say.earlier.replace("{step}", step) + ": " + this.named(id) + p, "uc-about");
      }
      if (c.also && c.also.length) {
        add(tip, "div", this.say.alternatives, "uc-head");
        const list = add(tip, "ol", undefined, "uc-also");
        for (const [id, p] of c.also) {
          const item = add(list, "li", undefined, id === c.id ? "chosen" : "");
          const bar = add(item, "span", undefined, "uc-part c" + this.level(p));
          bar.style.width = Math.max(1, 100 * p) + "%";
          add(item, "code", this.named(id));
          if (id === c.id) add(item, "span", "✓", "uc-chosen").setAttribute("aria-label", this.say.chosen);
          add(item, "span", p < 0.0005 ? "<0.1 %" : (100 * p).toFixed(1) + " %", "uc-p");
        }
      }
      const at = s.getClientRects()[0] || s.getBoundingClientRect();
      const box = this.$el.getBoundingClientRect();
      const width = this.$el.clientWidth;
      tip.style.left = Math.max(0, Math.min(at.left - box.left, width - tip.offsetWidth)) + "px";
      tip.style.top = at.bottom - box.top + 8 + "px";
      if (at.bottom + 8 + tip.offsetHeight > innerHeight - 16 && at.top - tip.offsetHeight - 8 > 64)
        tip.style.top = at.top - box.top - tip.offsetHeight - 8 + "px";
      if (calm.matches) tip.style.transition = "none";
    },
  },
};
