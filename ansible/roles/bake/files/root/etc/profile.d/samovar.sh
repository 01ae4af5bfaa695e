# Whoever leaves a shell open is logged out; what people make is not for everybody.
umask 027
TMOUT=1800
readonly TMOUT
export TMOUT
