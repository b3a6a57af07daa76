"""Reads C++ as text: where functions begin and end, and the reasons given in a file's head.

A tokenizer, not a parser. It knows comments, literals, preprocessor lines, scopes, member
initialisers and default arguments, which is enough to measure functions.
"""

import collections
import re

Function = collections.namedtuple("Function", "name line lines is_kernel")

_BLANKED = re.compile(
    r'//[^\n]*'
    r'|/\*.*?\*/'
    r'|R"(?P<mark>[^()\\ ]{0,16})\(.*?\)(?P=mark)"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![\w'])(?:u8|[uUL])?'(?:\\.|[^'\\\n])+'"
    r'|^[ \t]*#(?:[^\n\\]|\\\n|\\.)*',
    re.DOTALL | re.MULTILINE)


def blanked(text):
    """`text` with comments, literals and preprocessor lines replaced by spaces, lines kept."""
    return _BLANKED.sub(lambda m: re.sub(r"[^\n]", " ", m.group(0)), text)


def size_reason(text):
    """What the comment at the top of the file says after "Size:", or the empty string."""
    head = re.match(r"(?:[ \t]*//[^\n]*\n|\s*\n)*", text).group(0)
    match = re.search(r"//\s*Size:(.*)", head, re.DOTALL)
    return " ".join(match.group(1).replace("//", " ").split()) if match else ""


def functions(text):
    """Every function body of a C++ file, lambdas and nested blocks counted with their function."""
    code = blanked(text)
    found = []
    stack = []         # (kind, statement start before the brace)
    statement = 0      # where the current declaration begins
    depth = 0          # of enclosing function bodies
    for match in re.finditer(r"[{};]", code):
        at = match.start()
        if match.group(0) == "{":
            kind = "inner" if depth else _kind(code[statement:at])
            depth += kind in ("function", "inner")
            stack.append((kind, statement))
            if kind != "init":
                statement = at + 1
        elif match.group(0) == "}":
            if not stack:
                continue
            kind, begin = stack.pop()
            depth -= kind in ("function", "inner")
            if kind == "function":
                found.append(_function(code, begin, at))
            if kind != "init":
                statement = at + 1
        elif not stack or stack[-1][0] != "init":
            statement = at + 1
    return found


def _kind(declaration):
    """What an opening brace after `declaration` opens: scope, function, or an initialiser."""
    text = re.sub(r"^\s*((public|private|protected)\s*:\s*)*", "", declaration)
    text = re.sub(r"^template\s*<[^{}]*?>\s*(?=(class|struct|union)\b)", "", text)
    if re.match(r"(inline\s+)?namespace\b|extern\s*$|(class|struct|union|enum)\b", text):
        return "scope"
    if text.count("(") > text.count(")") or re.search(r"(=|,|\breturn)\s*$", text):
        return "init"
    if re.search(r"\)[\w\s]*:[^:].*[\w>]\s*$", text, re.DOTALL):
        return "init"  # a member initialiser such as `: name_{…}`
    return "function" if "(" in text else "init"


def _function(code, begin, end):
    declaration = code[begin:end]
    lead = re.match(r"\s*((public|private|protected)\s*:\s*)*", declaration).end()
    first = code.count("\n", 0, begin + lead) + 1
    last = code.count("\n", 0, end) + 1
    signature = declaration[lead:]
    name = re.search(r"(operator\s*[^\s(]+|[~\w:]+)\s*\(", signature)
    name = name.group(1) if name else "?"
    if re.fullmatch(r"TEST(_F|_P)?|TYPED_TEST(_P)?", name):
        name = re.sub(r"\s+", "", re.match(r"[^)]*\)", signature).group(0))
    return Function(name, first, last - first + 1, "__global__" in signature.split("(")[0])
