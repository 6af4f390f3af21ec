"""Recognises a teacher that declines instead of answering, in English, German, French, Spanish and Chinese.

A list of known refusals does not generalise: one written against 150 refusals found 37 % of the next 150. What all refusals share does: the
teacher speaks of *itself*, and in the negative ("I can't", "my rules forbid", "je ne peux pas"), or of the picture as something *sent to
it* ("your message contains no image", "please upload the photo"). A look-alike speaks about what is in the picture: "I'm sorry for the
dog", "the horse refuses to jump". So a sentence is a refusal if a first person and a negation are left in it after

- what stands in quotation marks is taken out: signs and screens say "Sorry" too;
- what a viewer says about a view is taken out: "I can't see any cats", "I would say", "I can't help but smile".

All expressions are free of nested repetition and have bounded gaps: linear time on any text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_QUOTED = re.compile(
    r"\"[^\"\n]{0,200}\"|“[^”\n]{0,200}”|„[^“”\n]{0,200}[“”]|«[^»\n]{0,200}»|「[^」\n]{0,200}」|(?<!\w)'[^'\n]{3,200}'(?!\w)"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|[。！？\n]|(?<=;)\s")
_ENGLISH = re.compile(r"\b(?:the|is|are|and|of|with|this|there|it|to|i|i'm|its|has a|have)\b")
_PLAIN_QUOTES = str.maketrans({"’": "'", "‘": "'", "＇": "'", "`": "'"})


@dataclass(frozen=True)
class _Language:
    """Regular expressions over lower-case text. `view` is removed before `first_person` and `negation` are looked for in a sentence."""

    first_person: str
    negation: str
    view: str
    outright: str
    """Refusals that need no first person: of a picture that was not sent, of rules, of being a machine."""


_EN_PICTURE = r"(?:images?|pictures?|photos?|photographs?|visuals?|attachments?|screenshots?)\b"
_DE_PICTURE = r"(?:bild(?!schirm)\w*|fotos?\b|fotografie\w*|aufnahmen?\b|anhang\b|dateianhang)"
_FR_PICTURE = r"(?:images?|photos?|photographies?|clichés?|pièces? jointes?)\b"
_ES_PICTURE = r"(?:imagen|imágenes|fotos?|fotografías?|archivos? adjuntos?)\b"
_ZH_PICTURE = r"(?:图片|图像|照片|影像|画面|原图|附件|截图)"

_LANGUAGES: Mapping[str, _Language] = {
    "English": _Language(
        first_person=r"\b(?:i|i'm|i've|i'd|i'll|im|my|myself|we(?=(?:'re| are) (?:unable|not able|sorry)| (?:cannot|can't|won't|do not"
        r"|don't) (?:generate|create|assist|help|process|provide|answer|discuss|support|comply|share|offer|accept))|our (?:policy"
        r"|policies|guidelines|rules))\b",
        negation=r"\b(?:not|cannot|no|none|nothing|never|unable|incapable|without|lack\w*|refus\w*|declin\w*|inappropriate|prohibit\w*"
        r"|forbid\w*|forbidden"
        r"|against|beyond|outside (?:of )?(?:my|the scope|what)|impossible|violat\w*|regret\w*|restricted|limited to|only (?:able"
        r"|process|work|handle|read|deal)"
        r"|need(?:s|ed)?(?: to see| the| an?| your| more)|wish i could|sorry|prevent\w*|block\w*|off limits|pass on|have to pass"
        r"|stop here|end (?:this|the) conversation|instead of|apologi\w+|rather not|blind)\b|n't\b",
        view=r"\bi(?: really| still| honestly)? (?:can(?:'t|not| not)|don't|do not|didn't|did not|couldn't|could not) (?:\w+ly )?"
        r"(?:see|spot|find|notice|make out|detect|count|tell|believe|imagine|know|help but|help \w+ing|recall|have a favou?rite"
        r"|say for sure|quite)\b"
        rf"(?! (?:(?:the|an?|any|your|this|that|these|actual|attached|uploaded) ){{0,3}}{_EN_PICTURE}(?! (?:of|on|frame))| (?:what|it\b"
        rf"|you\b|who\b|anything|more\b|pictures|them[.!]?$))"
        r"|\bi(?: would|'d) (?!have to|rather|need|prefer|love to|like to|be (?:unable|violating))\w+|, i(?:'m| am) afraid\b"
        r"|\bi (?:only )?(?:count|spot|find|recognize)\b|\bif i (?:were|was|had)\b[^,.]{0,40}"
        r"|\bi (?:don't|do not) (?:think|believe)\b|\bi (?:think|believe|suppose|guess|assume|imagine|see|can see|notice|expect|feel)\b"
        r"|\bi(?:'m| am) (?:so |very |really )?(?:sorry|afraid|sad) (?:for|about|that|to see|to say|the|this|he|she|it|they)\b|\bi(?:'m"
        r"| am) (?:not )?(?:quite |entirely )?(?:sure|certain)\b|\bin my (?:view|opinion)\b",
        outright=rf"\b(?:doesn't|does not) (?:seem|appear) to be an? {_EN_PICTURE}|\bi(?:'m| am) (?:just |only )?an? (?:text|language|ai)\b"
        rf"|\b(?:no|not an?y?|n't an?y?|without an?) {_EN_PICTURE} (?:was |were |has been |have been |is |to have been |appears? "
        rf"|seems? ){{0,2}}(?:attached|provided|uploaded|included|shared|supplied|sent|received|came|in your)"
        rf"|\b(?:image|picture|photo|photograph|file|attachment|upload) (?:did not|didn't|does not|doesn't|has not|hasn't|failed"
        rf"|was not|wasn't|is not|isn't|seems? to be missing|is missing)(?: \w+)? ?(?:load|come through|upload|arrive|attach|to load"
        rf"|to upload|open|display|been|there|available|provided|attached|included|shared)"
        rf"|\byou(?:'ve| have|r message| did|r request|r prompt|r question)?\b[^.!?]{{0,30}}\b(?:not|n't|forgot\w*"
        rf"|no)\b[^.!?]{{0,30}}\b{_EN_PICTURE}"
        rf"|\b(?:please|could you|can you|would you|if you|kindly|try)\b[^.!?]{{0,30}}\b(?:provid\w+|upload\w*|shar(?:e|ing)|attach\w*"
        rf"|send\w*|resend\w*|describe)\b[^.!?]{{0,25}}\b(?:{_EN_PICTURE}|it again|to me)"
        rf"|\b(?:image|picture|photo|visual|vision) (?:analysis|recognition|input|processing|understanding"
        rf"|description)s?\b[^.!?]{{0,20}}\b(?:not|n't|unsupported|unavailable|disabled)\b"
        rf"|\b(?:unable|not able|cannot|can't) (?:to )?(?:process (?:the |this |any )?images|assist|help you|help with|process|comply"
        rf"|fulfil|answer this|provide (?:that|this|a description)|view (?:the|this|any) {_EN_PICTURE})"
        r"|\b(?:as|being) an? (?:ai|artificial|large language|language model|text[- ](?:based|only)|virtual assistant"
        r"|digital assistant)\b(?=(?: \w+){0,3}(?:,| i\b| model| assistant| system))(?! \w+ (?:poster|conference|helps))"
        r"|\b(?:request|question|query|prompt|content|topic)\b(?: \w+){0,2} (?:can(?:'t|not| not)|could not|will not|has been|was|is"
        r"|are)(?: be)? (?:fulfilled|processed|completed|answered|generated|created|declined|rejected|denied|against|blocked)"
        r"|\b(?:content|usage|use|safety) polic(?:y|ies)\b|\b(?:inappropriate|(?:not|n't) (?:be )?(?:appropriate|possible)) for me\b"
        r"|\bpolicy (?:forbids|prohibits|prevents) me\b|\bviolates? (?:openai|the (?:guidelines|terms))",
    ),
    "German": _Language(
        first_person=r"\b(?:ich|mir|mich|mein|meine|meiner|meinen|meinem|meines|unseren? (?:richtlinien|regeln))\b",
        negation=r"\b(?:nicht|nichts|kein|keine|keinen|keiner|keinem|keinerlei|keines|ohne|nie|ungern|ablehnen|lehne|verweiger\w*|weigere"
        r"|unmöglich|untersagt|verboten|außerstande|unfähig"
        r"|außerhalb|übersteigt|passen|verstößt|verstoßen|beschränkt|nur (?:text|mit text)|widerspricht|fehl(?:t|en)|müsste|hinaus"
        r"|nein sagen|widerspruch|bedauerlicherweise|entfällt|erlaubt es"
        r"|grenzen|nur|zuerst|lieber|abgelehnt|hindert|hindern|gesperrt|leid|entschuldig\w*|verzichte|verzeihung|bedaure|weder)\b",
        view=rf"\b(?:ich (?:sehe|erkenne|finde|entdecke|bemerke)|(?:sehe|erkenne|finde|entdecke) ich)\b(?! (?:ihr|das|dein|euer"
        rf"|die) {_DE_PICTURE})[^.!?,;]{{0,40}}?\b(?:keine?n?|nicht)\b(?! {_DE_PICTURE}(?! an| auf))"
        rf"|\b(?:ich kann|kann ich)\b(?! (?:ihr|das|dein|euer|die|dieses) {_DE_PICTURE})[^.!?,;]{{0,40}}?\b(?:keine?n?"
        rf"|nicht)\b (?!{_DE_PICTURE})(?:\w+ )?(?:sehen|erkennen|entdecken|finden|ausmachen|zählen)\b(?!, was)"
        r"|\bich sehe kein bild (?:an|auf)\b"
        r"|\bich (?:zähle|tippe auf)\b[^.!?]{0,40}|\bich (?:würde|hätte) (?:sagen|schätzen|vermuten|tippen)\b|\bich (?:glaube|denke"
        r"|vermute|meine|schätze|finde)\b|(?<=\w\w\w )(?:tut|tun) mir (?:sehr |so |wirklich )?leid\b|\bich fürchte, (?:d(?:er|ie|as)"
        r"|es)\b",
        outright=rf"\b(?:scheint|gibt es|ist) (?:mir )?kein(?:e|en)? {_DE_PICTURE} (?:zu sein|zu geben|vorhanden|dabei|beigefügt)|\b(?:kein"
        rf"|ohne) {_DE_PICTURE} (?:in|im) (?:unserem|ihrer|deiner|diesem) (?:chat|nachricht|gespräch)"
        rf"|\bkeine? {_DE_PICTURE}(?: \w+){{0,3}} (?:angehängt|bereitgestellt|hochgeladen|übermittelt|beigefügt|geschickt|gesendet"
        rf"|erhalten|angefügt|mitgeschickt|gefunden|vor)\b"
        rf"|\b{_DE_PICTURE} (?:wurde|ist|konnte|liegt|fehlt)(?: \w+){{0,2}} nicht(?: \w+)? (?:mitgeschickt|geladen|angekommen"
        rf"|hochgeladen|angehängt|übertragen|bereitgestellt|vor)"
        rf"|\b(?:ihre|deine|diese) (?:nachricht|anfrage|frage)\b[^.!?]{{0,30}}\b(?:kein|ohne)\b[^.!?]{{0,10}}{_DE_PICTURE}"
        rf"|\bsie haben (?:\w+ )?kein {_DE_PICTURE}"
        rf"|\bbitte\b[^.!?]{{0,30}}\b{_DE_PICTURE}[^.!?]{{0,25}}\b(?:hoch|zur verfügung|hochladen|bereit|bereitstellen|senden|schicken"
        rf"|teilen|anhängen|bei|an)\b"
        rf"|\b(?:bitte|könnten sie|könntest du|können sie)\b[^.!?]{{0,20}}\b(?:laden|senden|schicken|teilen|stellen|fügen|hochladen"
        rf"|schicken)\b[^.!?]{{0,20}}\b{_DE_PICTURE}"
        r"|\b(?:bild|foto|sprach)(?:analyse|erkennung|verarbeitung|eingabe)n?\b[^.!?]{0,20}\b(?:nicht|kein)|\b(?:schicken|senden|zeigen"
        r"|schick|sende) (?:sie )?(?:mir|uns)\b[^.!?]{0,20}(?:bild|foto)"
        r"|\bals (?:ki\b|künstliche intelligenz|(?:\w+ )?(?:ki-)?(?:sprach|text)modell)"
        rf"|\bohne (?:das |ein |dieses )?{_DE_PICTURE}[^.!?]{{0,20}}\bnicht\b|\b(?:frage"
        rf"|anfrage)\b[^.!?]{{0,15}}\bohne (?:das )?{_DE_PICTURE}"
        r"|\b(?:anfrage|wunsch|aufgabe)\b (?:kann|konnte|darf|lässt sich|wurde|verstößt|widerspricht)(?: \w+){0,2} (?:nicht|abgelehnt"
        r"|gegen|den)\b"
        r"|\bnutzungsbedingungen\b|\bnutzungsrichtlinien\b",
    ),
    "French": _Language(
        first_person=r"\b(?:je|moi|mon|ma|mes|me|nos (?:règles|directives))\b|\b[jm]'",
        negation=r"\b(?:pas|aucune?|sans|jamais|rien|impossible|refuse\w*|décline\w*|refuser|décliner|incapa\w+|interdit\w*|empêch\w*"
        r"|contraire|encontre|dépasse\w*|au-delà|hors|manque\w*|inaccessibles?"
        r"|désolée?|navrée?|excuser?|excuses|ne (?:saurais|puis|répondrai|peux|la|le|les)|que (?:traiter|lire|du texte)|qu'une?|crains"
        r"|regrette|enfrein\w+|viole\w*|sort de|limitée?|impossibilité|dépourvue?|dire non|faudrait|contredi\w+|ne permet\w*"
        r"|passer mon tour|abstien\w*|uniquement|seulement|d'abord"
        r"|autre chose)\b",
        view=rf"\bje ne (?:vois|distingue|remarque|peux (?:pas )?(?:voir|distinguer)|trouve) (?:pas |aucune? |pas d'|pas de )(?!(?:l'|d'"
        rf"|de |la |les |cette |votre |une )?{_FR_PICTURE})(?!ce que|\.|!|$)"
        rf"|\bje ne peux(?: pas)? m'empêcher\b|\bje ne peux pas (?:croire|dire (?:exactement|avec|si)|m'imaginer)\b|\bje (?:dirais"
        rf"|pense|crois|suppose|trouve|vois)\b"
        r"|\bje (?:suis|me sens) (?:\w+ )?(?:désolée?|navrée?|triste) (?:pour|que|de voir)\b|\bje crains que\b|\bje (?:compte"
        r"|parierais)\b[^.!?]{0,40}|\bà mon avis\b|\bselon moi\b|\bpour moi, (?:le|la|les|c')\b",
        outright=rf"\bne (?:semble|paraît) pas y avoir d'{_FR_PICTURE}|\b(?:merci|veuillez|pourriez)\b[^.!?]{{0,15}}\b(?:ajouter|d'ajouter"
        rf"|inclure|d'inclure)\b[^.!?]{{0,10}}{_FR_PICTURE}"
        rf"|\baucune? {_FR_PICTURE} (?:n'(?:a été|est)|ne (?:m'|s'))|\b(?:votre|ton|ta) (?:message|demande"
        rf"|requête)\b[^.!?]{{0,30}}\b(?:aucune?|pas|sans)\b"
        r"|\bvous n'avez\b[^.!?]{0,20}(?:joint|fourni|envoyé|partagé|télé\w+|transmis|inclus)"
        rf"|\b(?:veuillez|merci de|pourriez-vous|pouvez-vous|pourrais-tu|s'il vous plaît)\b[^.!?]{{0,20}}(?:fournir|partager|envoyer"
        rf"|renvoyer|joindre|télé\w+|transmettre|ajouter)[^.!?]{{0,20}}{_FR_PICTURE}"
        r"|\ben tant qu(?:e |')(?:ia\b|intelligence artificielle|(?:grand )?modèle|assistante? (?:virtuel|ia)|programme)|\bétant une ia\b"
        r"|\b(?:désolée?|navrée?|malheureusement|hélas)\b[^.!?]{0,12}\bimpossible (?:de|pour)\b"
        rf"|(?:^|, )impossible (?:d'|de |pour )[^.!?]{{0,40}}\b(?:vous|votre|moi)\b|\b(?:analyse|reconnaissance|lecture) (?:d'|des "
        rf"|de )(?:images?|photos?)\b[^.!?]{{0,15}}\b(?:pas|indisponible)|\benvoye[zr][ -](?:la |l'|moi"
        rf"|nous)[^.!?]{{0,20}}{_FR_PICTURE}"
        rf"|\bsans (?:l'|la |cette |une )?{_FR_PICTURE}[^.!?]{{0,20}}\bimpossible\b"
        r"|\b(?:demande|requête|contenu|question)\b (?:\w+ )?(?:enfreint|viole|est contraire|contrevient|ne peut|a été (?:refusée?"
        r"|rejetée?))(?! (?:de l'avocat))|\bpolitique d'utilisation\b|\bconditions d'utilisation\b",
    ),
    "Spanish": _Language(
        first_person=r"\b(?:yo(?!-)|me|mí|mi|mis|puedo|podré|podría ayudar|soy(?! sauce| milk| bean)|estoy|tengo|debo|quiero|deseo|dispongo"
        r"|carezco|cuento con|poseo|prefiero|declino|rechazo|lamento|siento|niego|abstengo|voy a|he \w+[aei]do|hablo|veo|sé"
        r"|disculpo|temo|\w{2,}ré|necesito|emito|perdóname|tendría que (?:ver|recibir|tener)|trabajo|sugiero|pido|tuve|pude|fui)\b",
        negation=r"\b(?:no|ni|nunca|ningun[oa]?|ningún|sin|imposible|incapaz|prohibido|contrari[oa]s?|contra|impiden|impide|falta|fuera"
        r"|carezco|declino|rechazo|rechazar|niego|declinar|supera\w*|excede\w*"
        r"|más allá|solo|únicamente|lamento|disculp\w+|infringe|viola|imposibilidad|contradic\w+|tendría|negativa|decir que no|faltan"
        r"|pasar|otra cosa|negarme|limita\w*"
        r"|necesito (?:ver|la|que|más)|abstengo|limitado|tampoco)\b",
        view=rf"\bno (?:puedo )?(?:veo|ver|distingo|distinguir|encuentro|noto|aprecio) (?!(?:la|las|ninguna|esta|esa|tu"
        rf"|su) {_ES_PICTURE}|{_ES_PICTURE}|nada|lo que)(?=\w)"
        r"|\bno puedo (?:evitar|creer|imaginar|decir (?:con|si|exactamente))\b|\byo diría\b|\bsiento (?:pena|lástima|mucho por|que)\b"
        r"|\bme (?:parece|da (?:pena|la impresión))\b|\bcuento (?!con)[^.!?]{0,40}|\bapostaría\b|\bcreo que\b|\ba mi (?:juicio"
        r"|parecer)\b|\ben mi opinión\b|\bveo\b|\bpuedo ver\b"
        r"|\bme temo que (?:el|la|los|las)\b",
        outright=rf"\bno parece haber ninguna {_ES_PICTURE}|\b(?:añad|agreg|inclu)\w+[^.!?]{{0,8}}{_ES_PICTURE}[^.!?]{{0,12}}\b(?:y|para"
        rf"|por favor)\b|\bperdón\w*[^.!?]{{0,20}}\b(?:contradice|incumple)"
        rf"|\bno se (?:me )?(?:ha|han|pudo)[^.!?]{{0,25}}\b(?:proporcionado|adjuntado|enviado|compartido|incluido|subido|cargado"
        rf"|cargar)\b[^.!?]{{0,15}}{_ES_PICTURE}"
        rf"|\b(?:tu|su) (?:mensaje|solicitud|petición)\b[^.!?]{{0,20}}\b(?:no|ningun[oa]|sin)\b|\bno (?:has|ha) (?:adjuntado"
        rf"|proporcionado|enviado|compartido|subido|incluido)"
        rf"|\b(?:por favor|podrías|podría|puedes|puede|adjunt[ea]|sub[ea])\b[^.!?]{{0,25}}(?:proporcion\w*|compart\w*|envi\w*|enví\w*"
        rf"|adjunt\w*|sub[ae]\w*|subir|facilit\w*|por favor)?[^.!?]{{0,15}}{_ES_PICTURE}[^.!?]{{0,20}}(?:para|\?|por favor|de nuevo"
        rf"|otra vez|[.!]$)"
        r"|\b(?:como|al ser|siendo) (?:una? )?(?:ia\b|inteligencia artificial|(?:gran )?modelo (?:de|basado)|asistente (?:virtual"
        r"|digital|de ia))"
        r"|\bimposible [^.!?]{0,30}\b(?:me|te|tu|su)\b|\b(?:análisis|reconocimiento|lectura) de (?:imágenes|fotos)\b[^.!?]{0,15}\bno\b"
        r"|\b(?:envíame|mándame|muéstrame|envíeme|mándeme|pásame)\b[^.!?]{0,15}(?:foto|imagen)"
        r"|\b(?:lo siento|perdón|disculpa\w*|lamentablemente|desafortunadamente|por desgracia)\b[^.!?]{0,12}\bimposible\b"
        r"|\b(?:solicitud|petición|contenido)\b (?:no (?:puede|pudo)|infringe|viola|es contrari|ha sido (?:rechazad|denegad)"
        r"|va en contra)\w*|\bpolíticas? de uso\b|\btérminos de uso\b|\bva en contra de mis\b",
    ),
    "Chinese": _Language(
        first_person=r"我(?!们可以看到|们看到)|恕|本人|^(?:抱歉|对不起|很遗憾|很抱歉|非常抱歉|不好意思|请原谅|请谅解)",
        negation=r"不|没|无|未|拒|禁|谢绝|难以|只能|只好|超出|超越|违|缺|放弃|爱莫能助|得先|冲突",
        view=rf"我(?:[^，。！？]{{0,6}})(?:没有?看到|没看见|看不到|没有?发现|没有?注意到|看不出|看不清)(?!(?:您|你|任何|这张|该|所|说|实际|的|上传){{0,5}}{_ZH_PICTURE}(?!里|中|上))"
        rf"|我(?:数到|数了|只看到|觉得|认为|猜|看到|为)(?!不)[^。！？]{{0,30}}|忍不住",
        outright=rf"(?:您|你)的(?:请求|要求|问题)(?:无法|不能)|请(?:您|你)?(?:先)?(?:添加|补充|附)[^，。！？]{{0,3}}(?:图|照)|"
        rf"请(?:您|你)?(?:先|重新|再)?(?:上传|提供|分享|发送|附上|发)(?:[^，。！？]{{0,6}})(?:图|照片)[^，。！？]{{0,3}}(?:，|以便|才能|$)(?<!请上传照片)|麻烦(?:您"
        rf"|你)[^，。！？]{{0,6}}(?:图|照片)"
        rf"|(?:您|你)(?:的(?:消息|问题|请求|信息))?[^，。！？]{{0,5}}(?:没有?|未|忘记|忘了)[^，。！？]{{0,6}}{_ZH_PICTURE}|能再(?:发|传)[^，。！？]{{0,6}}{_ZH_PICTURE}"
        rf"|{_ZH_PICTURE}(?:没有|未能|无法|未)(?:加载|显示|上传|收到|打开)(?!在)"
        r"|(?:作为|身为)(?:[^，。！？]{0,6})(?:ai|人工智能|语言模型|文本模型|虚拟助手|大模型|聊天机器人)(?!会议|机器人|展|海报)"
        r"|(?:无法|不能)(?:满足|处理|完成|受理|协助|帮助)(?:您|你)|(?:违反|不符合|违背)(?:了)?(?:我|使用|内容|平台|安全|相关)?(?:的)?(?:使用|内容|安全)?(?:准则|政策)|(?:请求|要求"
        r"|问题)(?:已经?|已被|被)+拒绝|此(?:内容|请求)(?:违反|不符合)|这不是我|不支持(?:图|照|视觉)|(?:您|你)(?:发|上传|提供)[^，。！？]{0,8}(?:无法|不能|没能)|请(?:您|你)?(?:先)?把(?:图"
        r"|照)",
    ),
}
_COMPILED = tuple(
    (name, *(re.compile(expression) for expression in (language.first_person, language.negation, language.view, language.outright)))
    for name, language in _LANGUAGES.items()
)


def refusal_in(text: str) -> str | None:
    """The sentence by which a text declines, with its language, or None."""
    plain = _QUOTED.sub(" ", text.translate(_PLAIN_QUOTES)).lower()
    for sentence in _SENTENCE_END.split(plain):
        sentence = " ".join(sentence.split())
        for name, first_person, negation, view, outright in _COMPILED:
            if name not in ("English", "Chinese") and _ENGLISH.search(sentence):
                continue  # "no", "me", "he", "soy" are words of two languages
            if outright.search(sentence):
                return f"it declines in {name} ({sentence[:80]!r})"
            if first_person.search(sentence) and negation.search(sentence):
                rest = view.sub(" ", sentence)
                if first_person.search(rest) and negation.search(rest):
                    return f"it declines in {name} ({sentence[:80]!r})"
    return None
