# Whoever leaves a shell open is logged out; what people make is not for everybody.
umask 027
ulimit -c 0
TMOUT=1800
readonly TMOUT
export TMOUT
