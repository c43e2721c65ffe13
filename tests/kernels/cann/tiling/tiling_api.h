#pragma once
#include "../../cann_registration.h"
