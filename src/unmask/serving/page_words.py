"""The words of the page in its two languages.

In:  a language, a name.  Out: a text. English and Chinese have the same names; a test holds that.
"""

from __future__ import annotations

from typing import Any

LANGUAGES = {"en": "English", "zh": "中文"}

WORDS: dict[str, tuple[str, str]] = {
    # around
    "title": ("Unmask", "Unmask"),
    "tabs": ("What to do", "功能"),
    "chat": ("Chat", "对话"),
    "text": ("Write on", "续写"),
    "infill": ("Infill", "填空"),
    "compare": ("Compare", "对比"),
    "language": ("Language: English. Change to Chinese", "语言：中文。切换为英文"),
    "other_language": ("中文", "EN"),
    "theme_auto": ("Colours: as the system", "配色：跟随系统"),
    "theme_light": ("Colours: light", "配色：浅色"),
    "theme_dark": ("Colours: dark", "配色：深色"),
    "lost": ("Connection lost.", "连接已断开。"),
    "trying": ("Trying to reconnect…", "正在重新连接……"),
    "skip": ("To the text field", "跳到输入框"),
    "why_plain": (
        "This model writes left to right, one token after another: there is no canvas to watch, no gaps to fill and "
        "no rules to compare.",
        "该模型从左到右逐个词元生成：没有可观看的画布，不能填空，也没有可对比的解码规则。",
    ),
    # key
    "key_title": ("This server asks for a key", "此服务器需要密钥"),
    "key": ("Key", "密钥"),
    "key_hint": (
        "It is kept until this tab is closed, and only by the server.",
        "密钥只在服务器端保留，关闭标签页后失效。",
    ),
    "key_go": ("Open", "进入"),
    "key_wrong": ("That is not a key of this server.", "密钥不正确。"),
    "key_slow": ("Too many tries; wait {after} s.", "尝试次数过多，请等待 {after} 秒。"),
    # chat
    "hello": ("Watch a model write", "观看模型写作"),
    "hello_more": (
        "It starts from a row of masks and reveals tokens in any order. Colours say how sure it was of each.",
        "模型从一排掩码开始，以任意顺序揭示词元。颜色表示写下每个词元时的置信度。",
    ),
    "hello_plain": ("Ask something; the answer is written from left to right.", "请提问，回答将从左到右生成。"),
    "try": ("Try:", "试试："),
    "example_1": ("What is a lighthouse for?", "What is a lighthouse for?"),
    "example_2": ("Name three colours.", "Name three colours."),
    "example_3": ("Tell me about the sea.", "给我讲讲大海。"),
    "ask": ("Ask something", "输入问题"),
    "ask_text": ("A text to go on with", "输入要续写的文本"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "new_chat": ("New chat", "新对话"),
    "you": ("You", "你"),
    "answer": ("Answer", "回答"),
    "copy": ("Copy", "复制"),
    "copied": ("Copied", "已复制"),
    "save_json": ("Trace (JSON)", "轨迹（JSON）"),
    "save_page": ("Replay (HTML)", "回放（HTML）"),
    # infill
    "infill_title": ("Fill gaps in a text", "填补文本中的空缺"),
    "infill_more": (
        "Write {{8}} where 8 tokens are missing. All gaps are filled at once, each in sight of the whole text.",
        "在缺失 8 个词元的位置写 {{8}}。所有空缺同时填补，每一处都能看到全文。",
    ),
    "infill_text": ("Text with gaps", "带空缺的文本"),
    "infill_example": (
        "The lighthouse {{8}} at night, so that the ships {{6}}.",
        "The lighthouse {{8}} at night, so that the ships {{6}}.",
    ),
    "gap": ("Tokens of the gap", "空缺的词元数"),
    "gap_put": ("Insert gap", "插入空缺"),
    "fill": ("Fill", "填补"),
    # compare
    "compare_title": ("Two rules, one question", "同一问题，两种规则"),
    "compare_more": (
        "They answer one after the other, so that the seconds are each rule's own. Then play both.",
        "两种规则依次回答，因此各自的用时互不影响。之后可同时回放。",
    ),
    "first": ("First rule", "规则一"),
    "second": ("Second rule", "规则二"),
    "run": ("Compare", "对比"),
    "play_both": ("Play both", "同时播放"),
    "passes": ("Forward passes", "前向次数"),
    "per_pass": ("Tokens per pass", "词元/次"),
    "seconds": ("Seconds", "秒"),
    "tokens": ("Tokens", "词元数"),
    "same": ("{share} of the places hold the same token.", "两者有 {share} 的位置词元相同。"),
    # settings
    "settings": ("Settings", "设置"),
    "settings_hint": ("What is left empty is the server's.", "留空则使用服务器的设置。"),
    "rule": ("Rule", "解码规则"),
    "servers": ("server's ({value})", "服务器默认（{value}）"),
    "all_tokens": ("1 a token", "1/词元"),
    "whole": ("all", "全部"),
    "drawn": ("random", "随机"),
    "rule_args": ("Rule settings", "规则参数"),
    "rule_args_hint": ("threshold=0.9", "threshold=0.9"),
    "steps": ("Steps", "步数"),
    "block_size": ("Block size", "块大小"),
    "temperature": ("Temperature", "温度"),
    "max_tokens": ("Tokens at most", "最多词元数"),
    "seed": ("Seed", "随机种子"),
    "cache": ("Cache", "缓存"),
    "reset": ("Reset", "重置"),
    "legend": ("Confidence when written", "写下时的置信度"),
    "open": ("open", "未写"),
    "fresh": ("new", "刚写下"),
    "back": ("taken back", "被收回"),
    "legend_hint": (
        "Click a token for the alternatives; with the keyboard: Tab to the text, arrows, Enter.",
        "点击词元查看备选；用键盘：Tab 到文本，方向键移动，回车打开。",
    ),
    # canvas
    "canvas": (
        "The answer as it is written. Arrows move, Enter shows alternatives.",
        "回答的书写过程。方向键移动，回车查看备选。",
    ),
    "play": ("Play", "播放"),
    "pause": ("Pause", "暂停"),
    "one_back": ("One step back", "后退一步"),
    "one_on": ("One step on", "前进一步"),
    "step": ("Step", "步"),
    "step_of": ("step {step} of {last}", "第 {step} 步，共 {last} 步"),
    "stat_tokens": ("tokens", "词元"),
    "stat_passes": ("passes", "次前向"),
    "stat_per_pass": ("tokens per pass", "词元/次"),
    "stat_seconds": ("s", "秒"),
    "place": ("place {place}", "位置 {place}"),
    "is_open": ("open", "未写"),
    "is_given": ("given", "原文"),
    "is_filled": ("filled after the end", "结束后填充"),
    "is_part": ("a part of a letter", "一个字符的一部分"),
    "written_at": ("written at step {step}", "第 {step} 步写下"),
    "confidence": ("confidence {p}", "置信度 {p}"),
    "earlier": ("earlier, at step {step}", "此前，第 {step} 步"),
    "alternatives": ("Likeliest when it was written", "写下时最可能的词元"),
    "chosen": ("written", "已写"),
    "writing": ("The answer is being written.", "正在生成回答。"),
    "waiting": ("Waiting for its turn…", "排队等待中……"),
    "done": ("Answer: {text}", "回答：{text}"),
    "reason_stop": ("ended by itself", "自然结束"),
    "reason_length": ("at full length", "达到长度上限"),
    "reason_cancelled": ("stopped", "已停止"),
    "reason_timeout": ("out of time", "超时"),
    # trouble
    "queue_full": (
        "Too many requests are waiting. Try again in {after} s.",
        "排队的请求太多，请 {after} 秒后再试。",
    ),
    "rate_limit_exceeded": (
        "Too many requests within a minute. Try again in {after} s.",
        "一分钟内请求过多，请 {after} 秒后再试。",
    ),
    "context_length_exceeded": (
        "This is too long for the model: {message} Shorten it, ask for fewer tokens, or start a new chat.",
        "超出模型可容纳的长度：{message} 请缩短内容、减少词元数或开始新对话。",
    ),
    "stopping": ("The server is stopping.", "服务器正在关闭。"),
    "failed": (
        "The model failed on this request; the server's log says why.",
        "模型处理该请求时出错，原因见服务器日志。",
    ),
    "invalid": ("A setting cannot be: {message}", "某项设置无效：{message}"),
    "refused": ("The server refused: {message}", "服务器拒绝了请求：{message}"),
    "no_chat": (
        "This model has no chat template; it goes on with your text.",
        "该模型没有对话模板，将续写你的文本。",
    ),
}

TROUBLES = frozenset(
    {"queue_full", "rate_limit_exceeded", "context_length_exceeded", "stopping", "failed", "invalid", "refused"}
)
"""Codes of what can go wrong that have words of their own."""

CANVAS = (
    *(
        "canvas",
        "play",
        "pause",
        "one_back",
        "one_on",
        "step",
        "step_of",
        "stat_tokens",
        "stat_passes",
        "stat_per_pass",
    ),
    *("stat_seconds", "place", "is_open", "is_given", "is_filled", "is_part", "written_at", "confidence", "earlier"),
    *("alternatives", "chosen", "writing", "waiting", "done"),
    *("reason_stop", "reason_length", "reason_cancelled", "reason_timeout"),
)
"""What is said in the browser."""


class Words:
    """The texts of one language."""

    def __init__(self, language: str) -> None:
        self.language = language if language in LANGUAGES else "en"
        self.which = list(LANGUAGES).index(self.language)

    def __call__(self, name: str, **values: Any) -> str:
        text = WORDS[name][self.which]
        for key, value in values.items():  # not str.format: texts speak of {{8}}
            text = text.replace("{" + key + "}", str(value))
        return text

    def of_canvas(self) -> dict[str, str]:
        return {name: self(name) for name in CANVAS}


def language_of(asked: str | None, accepted: str) -> str:
    """The language of the address, or the first known one of an Accept-Language header, best first."""
    if asked in LANGUAGES:
        return str(asked)
    weighed = []
    for part in accepted.split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            weighed.append((-float(weight or 1), name.split("-")[0].lower()))
        except ValueError:
            continue
    return next((name for _, name in sorted(weighed, key=lambda pair: pair[0]) if name in LANGUAGES), "en")
