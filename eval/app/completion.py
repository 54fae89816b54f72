"""Tab completion for bash: Hydra's own finds no command that begins with `python -m`."""

SCRIPT = r"""# eval "$(python -m eval -sc install=bash)"
_libero_eval() {
    local command rest word choices
    case "$COMP_LINE" in
        *" -m eval "*) command="${COMP_LINE%% -m eval *} -m eval" ;;
        *libero-eval\ *) command="${COMP_LINE%%libero-eval *}libero-eval" ;;
        *) return ;;
    esac
    rest="${COMP_LINE#"$command"}"
    word="${COMP_LINE##* }"
    choices=$(COMP_LINE="libero-eval$rest" $command -sc query=bash 2>/dev/null)
    COMPREPLY=($(compgen -W "$choices" -- "$word"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _libero_eval python python3 libero-eval
"""
